#include "device.h"

#include <chrono>
#include <cstring>
#include <stdexcept>
#if defined(FC_EMULATE)
#include "scheduler.h"
#endif

namespace assumptions {

#if defined(FC_EMULATE)

Memory::Memory(size_t bytes, bool input, size_t element_bytes, const void* values)
    : bytes_(bytes),
      buffer_(input ? "input" : "output", input ? emu::Role::kInput : emu::Role::kOutput, bytes,
              256, element_bytes, emu::Placement::kEndAligned) {
  at_ = buffer_.data();
  if (input)
    std::memcpy(at_, values, bytes);
  else
    std::memset(at_, 0xFF, bytes);
}
Memory::~Memory() = default;

Words Memory::words() const {
  Words found(bytes_ / 4);
  std::memcpy(found.data(), at_, found.size() * 4);
  return found;
}

void finish(const std::function<int()>& launch) {
  emu::Settings settings;
  settings.workers = 1;
  emu::begin_run(settings);
  const int code = launch();
  emu::Statistics statistics;
  const std::string error = emu::end_run(&statistics);
  if (!error.empty()) throw std::runtime_error(error);
  if (code != 0) throw std::runtime_error("the launch failed with code " + std::to_string(code));
}

double seconds_of(int, const std::function<int()>& launch) {
  const auto began = std::chrono::steady_clock::now();
  finish(launch);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

fastconv::cuda::Device present_device() { return {90, 132}; }

#else

namespace {

void check(int code) {
  if (code == cudaSuccess) return;
  throw std::runtime_error(cudaGetErrorString(static_cast<cudaError_t>(code)));
}

}  // namespace

Memory::Memory(size_t bytes, bool input, size_t, const void* values) : bytes_(bytes) {
  check(cudaMalloc(&at_, bytes));
  check(input ? cudaMemcpy(at_, values, bytes, cudaMemcpyHostToDevice)
              : cudaMemset(at_, 0xFF, bytes));
}
Memory::~Memory() { cudaFree(at_); }

Words Memory::words() const {
  Words found(bytes_ / 4);
  check(cudaMemcpy(found.data(), at_, found.size() * 4, cudaMemcpyDeviceToHost));
  return found;
}

void finish(const std::function<int()>& launch) {
  check(launch());
  check(cudaDeviceSynchronize());
}

double seconds_of(int count, const std::function<int()>& launch) {
  finish(launch);
  cudaEvent_t before, after;
  check(cudaEventCreate(&before));
  check(cudaEventCreate(&after));
  check(cudaEventRecord(before));
  for (int i = 0; i < count; ++i) check(launch());
  check(cudaEventRecord(after));
  check(cudaEventSynchronize(after));
  float ms = 0;
  check(cudaEventElapsedTime(&ms, before, after));
  cudaEventDestroy(before);
  cudaEventDestroy(after);
  return ms * 1e-3 / count;
}

fastconv::cuda::Device present_device() {
  int major = 0, minor = 0, sms = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  return {10 * major + minor, sms};
}

#endif

}  // namespace assumptions
