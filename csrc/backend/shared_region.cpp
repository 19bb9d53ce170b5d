#include "backend/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "common/errors.h"

namespace mempool {
namespace {

constexpr std::uint64_t kMagic = 0x6c6f6f706d656d01;  // "mempool", and a byte that tells text from it

[[noreturn]] void fail(const std::string& path) {
  throw std::system_error(errno, std::generic_category(), "the shared region " + path);
}

bool is_private(const struct stat& found) { return found.st_uid == geteuid() && (found.st_mode & 077) == 0; }

// A lock on one byte that belongs to a file description, not to a process: see fcntl(2), open file description locks.
struct flock lock_of(off_t place, short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = place;
  lock.l_len = 1;
  return lock;
}

void check_name(const std::string& name) {
  const bool is_plain =
      !name.empty() && name.size() <= 64 && name.front() != '.' &&
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == std::string::npos;
  if (!is_plain) {
    throw ConfigError("'" + name + "' is no name of a shared region: up to 64 letters, digits, '.', '_' and '-'.");
  }
}

}  // namespace

SharedRegion::SharedRegion(const std::string& folder, const std::string& name, Header header,
                           const std::function<void(void*)>& fill) {
  check_name(name);
  path_ = folder + "/" + name;
  header.magic = kMagic;
  bytes_ = header.bytes;
  while (!open_existing(header)) {
    if (fill == nullptr) fail(path_);
    make(header, fill);
  }
}

SharedRegion::~SharedRegion() {
  if (memory_ != nullptr) munmap(memory_, bytes_);
  if (file_ >= 0) close(file_);
}

// False: there is none.
bool SharedRegion::open_existing(const Header& header) {
  file_ = open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (file_ < 0) {
    if (errno == ENOENT) return false;
    fail(path_);
  }
  try {
    struct stat found {};
    if (fstat(file_, &found) != 0) fail(path_);
    if (!S_ISREG(found.st_mode) || !is_private(found)) {
      throw std::runtime_error("The shared region " + path_ +
                               " is not this user's alone: remove it, or choose another name.");
    }
    device_ = found.st_dev;
    inode_ = found.st_ino;
    Header read{};
    const bool is_whole = pread(file_, &read, sizeof read, 0) == static_cast<ssize_t>(sizeof read);
    if (!is_whole || read.magic != header.magic || read.kind != header.kind || read.version != header.version ||
        read.bytes != header.bytes || static_cast<std::uint64_t>(found.st_size) < header.bytes) {
      throw std::runtime_error("The shared region " + path_ +
                               " is of another version of mempool: all processes of a tree need the same.");
    }
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (memory_ == MAP_FAILED) {
      memory_ = nullptr;
      fail(path_);
    }
  } catch (...) {
    close(file_);
    file_ = -1;
    throw;
  }
  return true;
}

// Under a name of its own first: nobody can see a region that is not whole. Another process may be faster.
void SharedRegion::make(const Header& header, const std::function<void(void*)>& fill) {
  std::string path = path_ + ".XXXXXX";
  const int file = mkostemp(path.data(), O_CLOEXEC);
  if (file < 0) fail(path_);
  void* memory = MAP_FAILED;
  int error = posix_fallocate(file, 0, static_cast<off_t>(bytes_));
  if (error == 0) {
    memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) error = errno;
  }
  if (error == 0) {
    std::memcpy(memory, &header, sizeof header);
    fill(memory);
    munmap(memory, bytes_);
    if (link(path.c_str(), path_.c_str()) != 0 && errno != EEXIST) error = errno;
  }
  ::unlink(path.c_str());
  close(file);
  if (error == 0) return;
  errno = error;
  fail(path_);
}

int SharedRegion::open_anew() const noexcept {
  int file = -1;
  if (is_open()) {
    char own[32];
    std::snprintf(own, sizeof own, "/proc/self/fd/%d", file_);
    file = open(own, O_RDWR | O_CLOEXEC);  // also where the name is gone
  }
  if (file < 0) file = open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0 || is_same(file)) return file;
  close(file);  // another region has the name now
  return -1;
}

bool SharedRegion::replace_file(int file) noexcept {
  if (is_open()) close(file_);
  file_ = file;
  return file >= 0;
}

bool SharedRegion::is_same(int file) const noexcept {
  struct stat here {};
  return file >= 0 && fstat(file, &here) == 0 && here.st_ino == inode_ && here.st_dev == device_;
}

bool SharedRegion::is_open() const noexcept { return is_same(file_); }

bool SharedRegion::lock_byte(off_t place) noexcept {
  struct flock lock = lock_of(place, F_WRLCK);
  return fcntl(file_, F_OFD_SETLK, &lock) == 0;
}

bool SharedRegion::share_byte(off_t place) noexcept { return share_byte(file_, place); }

bool SharedRegion::share_byte(int file, off_t place) noexcept {
  struct flock lock = lock_of(place, F_RDLCK);
  return fcntl(file, F_OFD_SETLK, &lock) == 0;
}

void SharedRegion::unlock_byte(off_t place) noexcept {
  struct flock lock = lock_of(place, F_UNLCK);
  fcntl(file_, F_OFD_SETLK, &lock);
}

bool SharedRegion::is_locked(off_t place) const noexcept {
  struct flock lock = lock_of(place, F_WRLCK);
  return fcntl(file_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

bool SharedRegion::is_named() const noexcept {
  struct stat there {};
  return lstat(path_.c_str(), &there) == 0 && there.st_ino == inode_ && there.st_dev == device_;
}

void SharedRegion::touch() noexcept {
  constexpr std::time_t kHour = 3600;
  const std::time_t now = std::time(nullptr);
  std::time_t last = touched_.load(std::memory_order_relaxed);
  if (now - last >= kHour && is_open() && touched_.compare_exchange_strong(last, now)) futimens(file_, nullptr);
}

void SharedRegion::unlink() noexcept {
  if (is_named()) ::unlink(path_.c_str());
}

std::string shared_folder() {
  const char* const given = std::getenv("XDG_RUNTIME_DIR");
  struct stat found {};
  const bool is_given = given != nullptr && given[0] == '/' && stat(given, &found) == 0 && found.st_uid == geteuid();
  const std::string path = (is_given ? std::string(given) : "/tmp") + "/mempool-" + std::to_string(geteuid());
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) fail(path);
  check_private(path);
  return path;
}

void check_private(const std::string& folder) {
  struct stat found {};
  if (lstat(folder.c_str(), &found) != 0) fail(folder);
  if (S_ISDIR(found.st_mode) && is_private(found)) return;
  throw std::runtime_error("The folder " + folder +
                           " is not this user's alone (mode 0700): name another one, or set XDG_RUNTIME_DIR.");
}

}  // namespace mempool
