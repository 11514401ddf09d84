// What can be said of a launch before it runs: the kernel's name and launch bound, and whether the
// configuration is one that sm_80 and sm_90 accept.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "shared_memory.h"
#include "worker.h"

namespace emu {

std::string code_address(const void* pc) {
  Dl_info info;
  if (pc == nullptr || dladdr(pc, &info) == 0) return "";
  char text[40];
  // One back: the address after a call may belong to the next line.
  std::snprintf(text, sizeof text, " <+%#tx>",
                static_cast<const char*>(pc) - 1 - static_cast<const char*>(info.dli_fbase));
  return text;
}

std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0 || info.dli_saddr != kernel || info.dli_sname == nullptr)
    return "kernel" + code_address(static_cast<const char*>(kernel) + 1);
  int status = 0;
  char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? plain : info.dli_sname;
  std::free(plain);
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
  const size_t arguments = name.rfind('(');
  if (arguments != std::string::npos) name.erase(arguments);
  for (size_t at; (at = name.find("fastconv::cuda::")) != std::string::npos;) name.erase(at, 16);
  return name;
}

namespace {
// The kernel's __launch_bounds__, or 0 when it has none (or none of a multiple of 32). Alignment
// may have put a few no-ops more in front of those that say it.
unsigned launch_bound(const void* kernel) {
#if defined(__x86_64__)
  const std::string no_op = "\x90";
#elif defined(__aarch64__)
  const std::string no_op("\x1f\x20\x03\xd5", 4);
#else
  const std::string no_op;
#endif
  const auto* const entry = static_cast<const char*>(kernel);
  unsigned count = 0;
  while (!no_op.empty() && count < kMaxThreads &&
         std::memcmp(entry - (count + 1) * no_op.size(), no_op.data(), no_op.size()) == 0)
    ++count;
  return count / 32 * 32;
}
}  // namespace

std::string check_configuration(const void* kernel, dim3 grid, dim3 block, size_t dynamic_bytes) {
  const auto text = [](dim3 v) {
    return std::to_string(v.x) + " x " + std::to_string(v.y) + " x " + std::to_string(v.z);
  };
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.x > 1024 || block.y > 1024 || block.z > 64)
    return "block of " + text(block) + " threads (at most 1024 together, 64 in z)";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 ||
      grid.z > 65535)
    return "grid of " + text(grid) + " blocks (at least 1; at most 2^31-1 in x, 65535 in y and z)";
  if (dynamic_bytes > kSharedLimit)
    return std::to_string(dynamic_bytes) + " bytes of dynamic shared memory (at most " +
           std::to_string(kSharedLimit) + ")";
  const unsigned bound = launch_bound(kernel);
  if (bound != 0 && threads > bound)
    return "block of " + text(block) + " threads, but __launch_bounds__(" + std::to_string(bound) +
           ")";
  return "";
}

}  // namespace emu
