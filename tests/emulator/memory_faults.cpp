#include "memory_faults.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <mutex>

#include "guarded_buffers.h"
#include "scheduler.h"

namespace emu {

namespace {
constexpr size_t kSignalStack = 64 * 1024;
std::mutex scopes_mutex;
int scopes = 0;
struct sigaction before_segv, before_bus;

// The faulting instruction is the kernel's own, never the middle of an allocation, so the handler
// may do what any code may; and it leaves as any failing fiber does. The signal stack is then free
// for the next fault (SA_NODEFER: the signal is not blocked while the handler runs).
void on_fault(int signal, siginfo_t* info, void*) {
  if (current == nullptr) {  // not ours: let it happen again under the handler from before
    sigaction(signal, signal == SIGSEGV ? &before_segv : &before_bus, nullptr);
    return;
  }
  // A misaligned vector instruction faults without an address.
  if (info->si_code == SI_KERNEL) fail("misaligned vector access (or a wild pointer)");
  fail("invalid access at " + describe_address(info->si_addr));
}
}  // namespace

FaultScope::FaultScope() : stack_(nullptr) {
#if !defined(__SANITIZE_ADDRESS__)  // its own report says more, and ends the process
  stack_ = ::operator new(kSignalStack);
  stack_t alternate{};
  alternate.ss_sp = stack_;
  alternate.ss_size = kSignalStack;
  sigaltstack(&alternate, &previous_);
  const std::lock_guard<std::mutex> lock(scopes_mutex);
  if (scopes++ == 0) {
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
  }
#endif
}

FaultScope::~FaultScope() {
  if (stack_ == nullptr) return;
  {
    const std::lock_guard<std::mutex> lock(scopes_mutex);
    if (--scopes == 0) {
      sigaction(SIGSEGV, &before_segv, nullptr);
      sigaction(SIGBUS, &before_bus, nullptr);
    }
  }
  sigaltstack(&previous_, nullptr);
  ::operator delete(stack_);
}

}  // namespace emu
