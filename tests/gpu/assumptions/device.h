// The few things that differ between a GPU and the emulation on the host's side: memory, and how a
// launch ends.
#pragma once
#include <string>
#include <vector>

#include "check.h"
#include "cuda/conv_algorithm.h"
#include "detail/platform.cuh"
#if defined(FC_EMULATE)
#include "guarded_buffers.h"
#else
#include <memory>
#endif

namespace assumptions {

// Memory of the device: an input with values, or an output all of whose bits are set.
class Memory {
 public:
  template <class T>
  explicit Memory(const std::vector<T>& values)
      : Memory(values.size() * sizeof(T), true, sizeof(T), values.data()) {}
  explicit Memory(size_t bytes) : Memory(bytes, false, 4, nullptr) {}
  ~Memory();
  Memory(const Memory&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(at_);
  }
  Words words() const;  // what an output holds now

 private:
  Memory(size_t bytes, bool input, size_t element_bytes, const void* values);
  size_t bytes_;
  void* at_ = nullptr;
#if defined(FC_EMULATE)
  emu::GuardedBuffer buffer_;
#endif
};

// Runs what launch() launches to its end; throws std::runtime_error with the device's words.
void finish(const std::function<int()>& launch);
// Seconds of one of `count` launches behind each other, after a first one.
double seconds_of(int count, const std::function<int()>& launch);

fastconv::cuda::Device present_device();
// The kernels do the least there that still runs every line.
#if defined(FC_EMULATE)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

}  // namespace assumptions
