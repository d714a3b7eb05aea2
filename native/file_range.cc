#include "paceline/file_range.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "paceline/errors.h"

namespace paceline {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw ReadError("cannot read " + path + ": " + what);
}

std::string last_error() { return std::generic_category().message(errno); }

int copy_of(int descriptor, const std::string& path) {
  const int copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) fail(path, last_error() + ".");
  return copy;
}

}  // namespace

FileRange::FileRange(int descriptor, std::int64_t start, std::string path)
    : start_(start), path_(std::move(path)), descriptor_(copy_of(descriptor, path_)) {}

FileRange::~FileRange() { close(descriptor_); }

void FileRange::read(std::size_t offset, std::size_t size, std::uint8_t* to) const {
  while (size > 0) {
    const auto at = static_cast<off_t>(start_) + static_cast<off_t>(offset);
    const ssize_t count = pread(descriptor_, to, size, at);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, last_error() + ". Check the disk, and load the model again.");
    if (count == 0) {
      fail(path_,
           "it is shorter than when it was opened. A model's file has to stay as it is while the "
           "model is in use: restore it, and load it again.");
    }
    const auto got = static_cast<std::size_t>(count);
    offset += got, to += got, size -= got;
  }
}

}  // namespace paceline
