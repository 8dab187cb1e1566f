#pragma once

#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

namespace skald_test {

/// What a run of the program left behind.
struct Outcome {
  int code = -1;  ///< exit code; -signal if a signal ended it
  std::string out{};
  std::string err{};
};

/// How the program is started.
struct Start {
  std::string input{};        ///< standard input
  std::string output_file{};  ///< standard output goes there instead
  bool close_reader = false;  ///< nobody reads standard output
  bool keep_input_open = false;
  std::size_t interrupt_after = 0;  ///< Ctrl-C when this many bytes have come out on standard output or error
};

namespace detail {

struct Pipe {
  int read_end = -1;
  int write_end = -1;
  Pipe() {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    read_end = ends[0];
    write_end = ends[1];
  }
  ~Pipe() {
    close_read();
    close_write();
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void close_read() { close_end(read_end); }
  void close_write() { close_end(write_end); }

 private:
  static void close_end(int& fd) {
    if (fd >= 0) ::close(fd);
    fd = -1;
  }
};

}  // namespace detail

/// Runs the program and waits for its end, at most a minute.
inline Outcome run_program(const std::vector<std::string>& arguments, const Start& start = {}) {
  std::vector<std::string> words{SKALD_CLI};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  detail::Pipe in;
  detail::Pipe out;
  detail::Pipe err;
  const int file = start.output_file.empty() ? -1 : ::open(start.output_file.c_str(), O_WRONLY | O_CLOEXEC);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::dup2(in.read_end, STDIN_FILENO);
    ::dup2(file >= 0 ? file : out.write_end, STDOUT_FILENO);
    ::dup2(err.write_end, STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  if (file >= 0) ::close(file);
  in.close_read();
  out.close_write();
  err.close_write();
  if (start.close_reader) out.close_read();
  std::signal(SIGPIPE, SIG_IGN);
  for (std::size_t done = 0; done < start.input.size();) {
    const auto wrote = ::write(in.write_end, start.input.data() + done, start.input.size() - done);
    if (wrote <= 0) break;  // the program does not read it
    done += static_cast<std::size_t>(wrote);
  }
  if (!start.keep_input_open) in.close_write();
  Outcome outcome;
  bool interrupted = start.interrupt_after == 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (out.read_end >= 0 || err.read_end >= 0) {
    pollfd polled[2] = {{out.read_end, POLLIN, 0}, {err.read_end, POLLIN, 0}};
    ::poll(polled, 2, 1000);
    if (std::chrono::steady_clock::now() > deadline) ::kill(child, SIGKILL);
    char buffer[4096];
    for (int i = 0; i < 2; ++i) {
      if (polled[i].revents == 0) continue;
      const auto got = ::read(polled[i].fd, buffer, sizeof buffer);
      if (got > 0) (i == 0 ? outcome.out : outcome.err).append(buffer, static_cast<std::size_t>(got));
      else if (i == 0) out.close_read();
      else err.close_read();
    }
    if (!interrupted && outcome.out.size() + outcome.err.size() >= start.interrupt_after) {
      interrupted = true;
      ::kill(child, SIGINT);
    }
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return outcome;
}

/// A folder for the files of one test, removed in the end.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "skald_cli_XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] std::string file(const std::string& name, const std::string& text) const {
    std::ofstream(file(name), std::ios::binary) << text;
    return file(name);
  }
  [[nodiscard]] std::size_t files() const {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path_)) ++count;
    return count;
  }

 private:
  std::string path_;
};

inline std::size_t line_count(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace skald_test
