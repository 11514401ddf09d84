// mbarriers, named barriers, registers that change hands, and where shared memory lies.
#include "detail/mbarrier.cuh"
#include "detail/named_barrier.cuh"
#include "detail/wgmma.cuh"
#include "device.h"

namespace assumptions::barriers {
using namespace fastconv::cuda;

namespace {

// Long against what hardware needs between two instructions.
__device__ void pause() {
#if !defined(FC_EMULATE)
  for (int i = 0; i < 20; ++i) __nanosleep(1000);
#endif
}

// out[0]: what the first warp saw once the second one had come, out[1]: 1 behind a fresh barrier.
__global__ void __launch_bounds__(64, 1) phases_kernel(uint32_t* out) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(uint64_t, barriers);
  uint32_t* const flag = reinterpret_cast<uint32_t*>(barriers + 2);
  if (threadIdx.x == 0) {
    mbarrier_init(barriers, 32);
    mbarrier_init_fence();
    *flag = 3;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    mbarrier_wait(barriers, 1);
    if (threadIdx.x == 0) out[1] = 1;
    mbarrier_wait(barriers, 0);
    if (threadIdx.x == 0) out[0] = *flag;
  } else {
    pause();
    if (threadIdx.x == 32) *flag = 7;
    __syncwarp();
    mbarrier_arrive(barriers);
  }
#endif
}

Outcome phases() {
  const Memory out(8);
  finish([&] {
    return launch_kernel(phases_kernel, LaunchConfig{dim3(1), dim3(64), 64, nullptr},
                         out.as<uint32_t>());
  });
  return judge(out.words(), {{"parity 1 passes at once, parity 0 after all arrivals", {7, 1}},
                             {"parity 0 passes at once", {3, 1}}});
}

// Three warps arrive at barrier 1 and go on, one waits for them; barrier 2 back.
__global__ void __launch_bounds__(128, 1) named_barriers_kernel(uint32_t* out) {
  FC_DYN_SHARED(uint32_t, values);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) {
    named_barrier_sync(1, 128);
    out[lane] = values[32 + lane] + values[64 + lane] + values[96 + lane];
    values[lane] = 1000 + lane;
    named_barrier_sync(2, 64);
  } else {
    pause();
    values[threadIdx.x] = threadIdx.x;
    named_barrier_arrive(1, 128);
    if (warp == 1) {
      named_barrier_sync(2, 64);
      out[32 + lane] = values[lane];
    }
  }
}

Outcome named_barriers() {
  const Memory out(256);
  finish([&] {
    return launch_kernel(named_barriers_kernel, LaunchConfig{dim3(1), dim3(128), 512, nullptr},
                         out.as<uint32_t>());
  });
  Words ordered(64), early(64, 0);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    ordered[lane] = 32 + 64 + 96 + 3 * lane;
    ordered[32 + lane] = early[32 + lane] = 1000 + lane;
  }
  return judge(out.words(),
               {{"sync waits for those that only arrive", ordered}, {"it does not", early}});
}

// The registers of the largest kernels: 168 of each thread at entry, then 40 and 232.
__global__ void __launch_bounds__(384, 1) registers_kernel(const uint32_t* in, uint32_t* out) {
#if defined(FC_SM90A)
  if (threadIdx.x < 128) {
    give_registers<40>();
    out[threadIdx.x] = in[threadIdx.x] + 1;
  } else {
    take_registers<232>();
    uint32_t many[200];
#pragma unroll
    for (int i = 0; i < 200; ++i) many[i] = in[threadIdx.x] * (2 * i + 1);
#if !defined(FC_EMULATE)
#pragma unroll
    for (int i = 0; i < 200; ++i) asm volatile("" : "+r"(many[i]));
#endif
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < 200; ++i) sum ^= many[i];
    out[threadIdx.x] = sum;
  }
#endif
}

Outcome registers() {
  Words in(384), right(384), unchanged(384);
  for (uint32_t i = 0; i < 384; ++i) {
    in[i] = i * 2654435761u;
    right[i] = in[i] + 1;
    for (uint32_t k = 0, sum = 0; i >= 128 && k < 200; ++k) right[i] = sum ^= in[i] * (2 * k + 1);
    unchanged[i] = 0xFFFFFFFFu;
  }
  const Memory from(in), out(384 * 4);
  finish([&] {
    return launch_kernel(registers_kernel, LaunchConfig{dim3(1), dim3(384), 0, nullptr},
                         from.as<const uint32_t>(), out.as<uint32_t>());
  });
  return judge(out.words(), {{"40 + 232 + 232 registers change hands", right},
                             {"nothing was written", unchanged}});
}

// Whether a generic address and its place in shared memory agree in what alignment looks at.
__global__ void __launch_bounds__(32, 1) addresses_kernel(uint32_t* out) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(unsigned char, dynamic);
  const unsigned char* const p = dynamic + threadIdx.x * 16;
#if defined(FC_EMULATE)
  const unsigned at = emu::shared_address(p);
#else
  const unsigned at = shared_u32(p);
#endif
  out[threadIdx.x] = (at - static_cast<unsigned>(reinterpret_cast<uintptr_t>(p))) % 1024;
#endif
}

Outcome addresses() {
  const Memory out(128);
  finish([&] {
    return launch_kernel(addresses_kernel, LaunchConfig{dim3(1), dim3(32), 1024, nullptr},
                         out.as<uint32_t>());
  });
  return judge(out.words(),
               {{"both are aligned alike", Words(32, 0)}, {"128 bytes apart", Words(32, 128)}});
}

}  // namespace

std::vector<Check> checks() {
  return {
      {"shared_addresses", "a generic address is aligned to 1024 bytes where its place is",
       "the start of every ring of wgmma", 90, addresses},
      {"mbarrier_phases", "waiting for parity 1 passes on a fresh mbarrier, for parity 0 it waits",
       "every ring of stages", 90, phases},
      {"named_barriers", "bar.sync and bar.arrive of different warps count for one phase",
       "inception, split tiles", 80, named_barriers},
      {"setmaxnreg", "384 threads with 168 registers each can change to 40, 232 and 232",
       "every kernel with roles", 90, registers},
  };
}

}  // namespace assumptions::barriers
