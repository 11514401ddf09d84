#include "memory_faults.h"

#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <mutex>

#include "guarded_buffers.h"
#include "worker.h"

namespace emu {

namespace {
constexpr size_t kSignalStack = 64 * 1024;
constexpr int kTimeSignal = SIGVTALRM;
constexpr int kSignals[] = {SIGSEGV, SIGBUS, kTimeSignal};

std::mutex scopes_mutex;
int scopes = 0;
struct sigaction previous_actions[3];

// The handler may do what any code may, because what it interrupts is kernel code, never the middle
// of an allocation; and it leaves as any failing fiber does, after which the signal stack is free
// for the next fault (SA_NODEFER: the signal is not blocked while the handler runs).
[[maybe_unused]] void on_fault(int signal, siginfo_t* info, void* state) {
  if (signal == kTimeSignal) {
    if (current != nullptr) fail("still running when its time was up: an endless loop?");
    return;
  }
  if (current == nullptr) {  // not ours: let it happen again under the handler from before
    sigaction(signal, &previous_actions[signal == SIGSEGV ? 0 : 1], nullptr);
    return;
  }
#if defined(__x86_64__)
  const auto* const machine = static_cast<const ucontext_t*>(state);
  const char* const pc = reinterpret_cast<const char*>(machine->uc_mcontext.gregs[REG_RIP]) + 1;
#else
  const char* const pc = nullptr;
#endif
  // A misaligned vector instruction faults without an address.
  if (info->si_code == SI_KERNEL)
    fail("misaligned vector access (or a wild pointer)" + code_address(pc));
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    const char* const guard = current->block->worker->stacks + i * kStackStride;
    const auto* const at = static_cast<const char*>(info->si_addr);
    if (at >= guard && at < guard + kPage)
      fail("stack overflow (a CUDA thread has " + std::to_string(kStackBytes / 1024) +
           " KiB here)" + code_address(pc));
  }
  fail("invalid access at " + describe_address(info->si_addr) + code_address(pc));
}
}  // namespace

FaultScope::FaultScope([[maybe_unused]] double seconds) {
#if !defined(__SANITIZE_ADDRESS__)  // its own report says more, and ends the process
  stack_ = ::operator new(kSignalStack);
  stack_t alternate{};
  alternate.ss_sp = stack_;
  alternate.ss_size = kSignalStack;
  sigaltstack(&alternate, &previous_);
  {
    const std::lock_guard<std::mutex> lock(scopes_mutex);
    if (scopes++ == 0) {
      struct sigaction action{};
      action.sa_sigaction = on_fault;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
      for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &previous_actions[i]);
    }
  }
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = kTimeSignal;
  event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
  timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_);
  itimerspec time{};
  time.it_value.tv_sec = static_cast<time_t>(seconds);
  time.it_value.tv_nsec = static_cast<long>((seconds - std::floor(seconds)) * 1e9) + 1;
  time.it_interval = {1, 0};  // again, should it come between two fibers
  timer_settime(timer_, 0, &time, nullptr);
#endif
}

FaultScope::~FaultScope() {
  if (stack_ == nullptr) return;
  timer_delete(timer_);
  {
    const std::lock_guard<std::mutex> lock(scopes_mutex);
    if (--scopes == 0)
      for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &previous_actions[i], nullptr);
  }
  sigaltstack(&previous_, nullptr);
  ::operator delete(stack_);
}

}  // namespace emu
