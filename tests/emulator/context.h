// Switching between fibers: a few instructions of assembly on x86-64, ucontext elsewhere (or with
// -DFC_EMULATE_UCONTEXT), which makes a system call per switch and is ten times slower.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(FC_EMULATE_UCONTEXT)
#define FC_ASM_SWITCH 1
#else
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

struct Context {
#if defined(FC_ASM_SWITCH)
  void* stack_pointer;
#else
  ucontext_t state;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* stack_low;  // null: the OS thread's own stack, filled in when it is left
  size_t stack_bytes;
  void* fake_stack;
#endif
};

#if defined(FC_ASM_SWITCH)
// Saves the callee-saved registers on the present stack, notes its pointer in *save, and goes on
// with what an earlier call (or prepare_context) left on the stack `load`.
extern "C" void fc_emulator_switch(void** save, void* load);
#endif

// Makes `context` start `entry` on the given stack at the next switch to it. `entry` never returns.
inline void prepare_context(Context& context, char* stack_low, size_t stack_bytes,
                            void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  // A fiber given up half-way leaves its frames marked.
  ASAN_UNPOISON_MEMORY_REGION(stack_low, stack_bytes);
  context.stack_low = stack_low;
  context.stack_bytes = stack_bytes;
  context.fake_stack = nullptr;
#endif
#if defined(FC_ASM_SWITCH)
  const uintptr_t top = reinterpret_cast<uintptr_t>(stack_low + stack_bytes) & ~uintptr_t(15);
  void** sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // the return address of `entry`: debuggers stop here; it also aligns the stack
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;  // rbp, rbx, r12 to r15
  context.stack_pointer = sp;
#else
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack_low;
  context.state.uc_stack.ss_size = stack_bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
#endif
}

// The first thing that `entry` calls: `from` is where the switch came from.
inline void entered_from([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_low, &from.stack_bytes);
#endif
}

inline void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_low, to.stack_bytes);
#endif
#if defined(FC_ASM_SWITCH)
  fc_emulator_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.state, &to.state);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace emu
