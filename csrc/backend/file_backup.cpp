#include "backend/file_backup.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

namespace mempool {
namespace {

// Positions are given with each call: a forked child shares the file's own.
template <typename Transfer>
bool transfer_all(char* address, std::size_t bytes, off_t offset, Transfer transfer) {
  while (bytes > 0) {
    const ssize_t done = transfer(address, bytes, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    address += done;
    bytes -= static_cast<std::size_t>(done);
    offset += done;
  }
  return true;
}

class FileBackup final : public Backup {
 public:
  explicit FileBackup(int file) : file_(file) {}
  ~FileBackup() override { close(file_); }

  bool save(const void* address, std::size_t bytes) noexcept override {
    try {
      ranges_.push_back({static_cast<char*>(const_cast<void*>(address)), bytes, end_});
    } catch (const std::bad_alloc&) {
      return false;
    }
    const Range& range = ranges_.back();
    end_ += static_cast<off_t>(bytes);
    return transfer_all(range.address, bytes, range.offset,
                        [this](char* at, std::size_t n, off_t offset) { return pwrite(file_, at, n, offset); });
  }
  bool restore() noexcept override {
    for (const Range& range : ranges_) {
      const bool read =
          transfer_all(range.address, range.bytes, range.offset,
                       [this](char* at, std::size_t n, off_t offset) { return pread(file_, at, n, offset); });
      if (!read) return false;
    }
    return true;
  }

 private:
  struct Range {
    char* address;
    std::size_t bytes;
    off_t offset;
  };

  const int file_;
  off_t end_ = 0;
  std::vector<Range> ranges_;
};

// Not every file system knows files without a name: there it has one for a moment.
int open_unnamed(const std::string& directory) {
  const int file = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0) return file;
  std::string name = directory + "/mempool-XXXXXX";
  const int named = mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) unlink(name.c_str());
  return named;
}

}  // namespace

std::unique_ptr<Backup> make_file_backup() noexcept {
  try {
    const char* const directory = std::getenv("TMPDIR");
    const int file = open_unnamed(directory != nullptr && *directory != '\0' ? directory : "/tmp");
    if (file < 0) return nullptr;
    return std::make_unique<FileBackup>(file);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

}  // namespace mempool
