// A small piece of memory that processes of one user share by name: a file in a private folder, whose pages are there
// before they are mapped, so that no touch can fail. It is for what a process must be able to join without a parent
// that hands it on; the file goes with its last user (SharedLedger says when that is).
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <functional>
#include <string>

namespace mempool {

class SharedRegion {
 public:
  // What a region begins with; it is the same in all versions.
  struct Header {
    std::uint64_t magic = 0;
    std::uint32_t kind = 0;     // of what is in it
    std::uint32_t version = 0;  // of its layout
    std::uint64_t bytes = 0;    // with the header
  };

  // Opens the region of this name, or makes one: `fill` then writes what follows the header, before any other process
  // can see it. Without `fill` none is made: where there is none, that is a std::system_error. Throws ConfigError for a
  // name that is none, std::system_error where the system refuses, and std::runtime_error for a file that is another
  // user's or of another version.
  SharedRegion(const std::string& folder, const std::string& name, Header header,
               const std::function<void(void* memory)>& fill);
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;
  ~SharedRegion();

  void* memory() const noexcept { return memory_; }
  // A descriptor of a file description of its own: locks on the file belong to it, and end with it. -1 where it cannot
  // be had. Asynchronous-safe but for its use of open(2).
  int open_anew() const noexcept;
  // From now on the region's own. False for -1.
  bool replace_file(int file) noexcept;
  // Whether the descriptor is still this region's: a daemon closes all that it knows nothing of.
  bool is_open() const noexcept;
  // Locks one byte of the file for this process, until it ends or reopens. False when another process has it.
  bool lock_byte(off_t place) noexcept;
  void unlock_byte(off_t place) noexcept;
  // Locks one byte together with any others that do the same.
  bool share_byte(off_t place) noexcept;
  static bool share_byte(int file, off_t place) noexcept;
  // Whether another process has a lock on it.
  bool is_locked(off_t place) const noexcept;
  // Whether the name still leads to this region.
  bool is_named() const noexcept;
  // Tells programs that remove old files from /tmp, once an hour at most, that this one is in use.
  void touch() noexcept;
  // Takes the name away. The memory stays for those who have it mapped.
  void unlink() noexcept;

  const std::string& path() const noexcept { return path_; }

 private:
  bool open_existing(const Header& header);
  bool is_same(int file) const noexcept;
  void make(const Header& header, const std::function<void(void*)>& fill);

  std::string path_;
  int file_ = -1;
  dev_t device_ = 0;  // these two tell the file from any other
  ino_t inode_ = 0;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
  std::atomic<std::time_t> touched_{0};
};

// The private folder for regions of this user, made where it is not there: in XDG_RUNTIME_DIR, else in /tmp. Throws
// std::runtime_error when somebody else owns what has its name, or may read it.
std::string shared_folder();
// Throws as shared_folder() does for a folder that is not this user's alone.
void check_private(const std::string& folder);

}  // namespace mempool
