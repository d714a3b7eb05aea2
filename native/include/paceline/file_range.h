// A tensor's place in an open file, for reading pieces of it.
//
// Through a mapping the system would bring in far more around each piece, and a file that somebody
// cut short would end the process instead of giving an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace paceline {

class FileRange {
 public:
  // Keeps a descriptor of its own to the same open file. `path` is for messages. Throws ReadError
  // where it gets none.
  FileRange(int descriptor, std::int64_t start, std::string path);
  ~FileRange();
  FileRange(const FileRange&) = delete;
  FileRange& operator=(const FileRange&) = delete;

  // Copies `size` bytes from `offset` bytes into the range on. Any thread may call it. Throws
  // ReadError where the file is shorter by now, or the disk fails.
  void read(std::size_t offset, std::size_t size, std::uint8_t* to) const;

 private:
  const std::int64_t start_;
  const std::string path_;
  const int descriptor_;
};

}  // namespace paceline
