// Turns a bad memory access of a fiber (SIGSEGV, SIGBUS) and a kernel that does not end into
// ordinary emulation errors.
#pragma once
#include <signal.h>
#include <time.h>

namespace emu {

// Catches faults of this OS thread while it lives, and stops it after `seconds` of processor time.
class FaultScope {
 public:
  explicit FaultScope(double seconds);
  ~FaultScope();
  FaultScope(const FaultScope&) = delete;

 private:
  void* stack_ = nullptr;  // signals are handled on: a fiber's may be what overflowed
  stack_t previous_{};
  timer_t timer_{};
};

}  // namespace emu
