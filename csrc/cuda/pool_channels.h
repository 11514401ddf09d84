// What the kernels that load vectors of NHWC channels refuse, and their arguments.
#pragma once
#include "pool_fprop_channels.cuh"
#include "pool_launch.h"

namespace fastconv::cuda::pool {

inline bool aligned_to(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// The reason why vectors of `vec` channels of `bytes` bytes each cannot be taken.
inline std::string refuse_channels(const PoolCall& call, int vec, int bytes) {
  std::string reason = refuse(call);
  if (!reason.empty()) return reason;
  const PoolProblem& p = call.p;
  if (p.adaptive()) return "this kernel takes adaptive axes whose windows are equally long";
  if (p.C % vec != 0)
    return "this kernel takes vectors of " + std::to_string(vec) +
           " channels, got C=" + std::to_string(p.C);
  const int64_t index = call.index_kind == PoolIndex::kLong ? 16 : vec;
  const bool indexed = call.index_kind != PoolIndex::kNone;
  if (!aligned_to(call.x, vec * bytes) || !aligned_to(call.y, vec * bytes) ||
      !aligned_to(call.dy, vec * bytes) || !aligned_to(call.result, vec * bytes) ||
      (indexed && !aligned_to(call.index, index)))
    return "this kernel takes tensors aligned to " + std::to_string(vec * bytes) +
           " bytes, and the index to " + std::to_string(index);
  const int64_t image = p.C * std::max(p.in_size(), p.out_size()), elements = p.N * image;
  if (image > kMaxCount)
    return "this kernel takes fewer than 2^31 elements an image, got " + std::to_string(image);
  if (elements / vec > kMaxCount)
    return "this kernel takes fewer than 2^31 vectors, got " + std::to_string(elements) +
           " elements";
  return {};
}

inline std::string refuse_power(const PoolCall& call) {
  if (call.power == 1 || call.power == 2) return {};
  return "this kernel takes the powers 1 and 2, got " + std::to_string(call.power);
}

template <class scalar_t>
PoolChannelArguments<scalar_t> channel_arguments_of(const PoolCall& call, int vec) {
  PoolChannelArguments<scalar_t> args;
  static_cast<PoolArguments<scalar_t>&>(args) = arguments_of<scalar_t>(call);
  const int64_t* const extent = call.backward ? call.p.in : call.p.out;
  args.vectors = static_cast<uint32_t>(args.g.elements / vec);
  args.by_vectors = FastDivmod(static_cast<uint32_t>(call.p.C / vec));
  for (int a = 0; a < 3; ++a) args.by_extent[a] = FastDivmod(static_cast<uint32_t>(extent[a]));
  const bool lp = call.kind == PoolKind::kLp;
  args.squares = lp && call.power == 2;
  // Every sum is divided by `divisor` (0: what the window counts) and multiplied by `whole`.
  if (lp) args.divisor = call.rescale ? 0.f : 1.f;
  if (!lp || !call.rescale) args.whole = 1;
  args.share = args.divisor == 0 ? 0.f : args.whole / args.divisor;
  return args;
}

}  // namespace fastconv::cuda::pool
