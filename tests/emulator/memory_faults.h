// Turns a bad memory access of a fiber (SIGSEGV, SIGBUS) into an ordinary emulation error.
#pragma once
#include <signal.h>

namespace emu {

// Catches faults of this OS thread while it lives.
class FaultScope {
 public:
  FaultScope();
  ~FaultScope();
  FaultScope(const FaultScope&) = delete;

 private:
  void* stack_;
  stack_t previous_{};
};

}  // namespace emu
