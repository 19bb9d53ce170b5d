#include "backend/file_backup.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <new>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "common/bytes.h"

namespace mempool {
namespace {

// Reads or writes the range at an offset of its own: a forked child shares the file's position.
template <typename Transfer>
bool transfer_all(char* address, std::size_t bytes, off_t offset, Transfer transfer) {
  while (bytes > 0) {
    const ssize_t done = transfer(address, bytes, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = EIO;  // the file is shorter than it was
    if (done <= 0) return false;
    address += done;
    bytes -= static_cast<std::size_t>(done);
    offset += done;
  }
  return true;
}

class FileBackup final : public Backup {
 public:
  // `file`: a descriptor, or -1 where none could be made; `error` is the errno of that.
  FileBackup(std::string directory, int file, int error)
      : directory_(std::move(directory)), file_(file), error_(error) {}
  ~FileBackup() override {
    if (file_ >= 0) close(file_);
  }

  bool save(const void* address, std::size_t bytes) noexcept override {
    if (file_ < 0) return false;
    try {
      ranges_.push_back({static_cast<char*>(const_cast<void*>(address)), bytes, end_});
    } catch (const std::bad_alloc&) {
      what_ = What::record;
      return false;
    }
    const Range& range = ranges_.back();
    end_ += static_cast<off_t>(bytes);
    const bool is_saved =
        transfer_all(range.address, bytes, range.offset,
                     [this](char* at, std::size_t n, off_t offset) { return pwrite(file_, at, n, offset); });
    return is_saved || fails(What::write);
  }
  std::string problem() const override {
    const std::string where = " in '" + directory_ + "': " + std::system_category().message(error_);
    constexpr const char* kAdvice = ". Name another folder in TMPDIR, or drop the contents with keep=False";
    const std::string bytes = format_bytes(static_cast<std::size_t>(end_));
    switch (what_) {
      case What::make:
        return "no file can be made" + where + kAdvice;
      case What::write:
        return bytes + " of its contents cannot be written" + where + kAdvice;
      case What::read:
        return "its contents, " + bytes + ", cannot be read back from their file" + where;
      default:
        return "no memory is left for the records of its contents";
    }
  }
  bool restore() noexcept override {
    for (const Range& range : ranges_) {
      const bool read =
          transfer_all(range.address, range.bytes, range.offset,
                       [this](char* at, std::size_t n, off_t offset) { return pread(file_, at, n, offset); });
      if (!read) return fails(What::read);
    }
    return true;
  }

 private:
  enum class What : std::uint8_t { make, record, write, read };
  struct Range {
    char* address;
    std::size_t bytes;
    off_t offset;
  };
  bool fails(What what) noexcept {
    what_ = what;
    error_ = errno;
    return false;
  }

  const std::string directory_;
  const int file_;
  What what_ = What::make;  // the step that failed last
  int error_;               // its errno
  off_t end_ = 0;           // bytes that save() was asked for so far
  std::vector<Range> ranges_;
};

// Some file systems do not support files without a name: there it has one for a moment.
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
    std::string folder = directory != nullptr && *directory != '\0' ? directory : "/tmp";
    const int file = open_unnamed(folder);
    return std::make_unique<FileBackup>(std::move(folder), file, file < 0 ? errno : 0);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

}  // namespace mempool
