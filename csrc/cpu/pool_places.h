// Pooling by explicit places, one element at a time: what needs no vectors. Layout-free: a strip is
// one plane of NCHW or a few neighbouring channels of NHWC.
#pragma once
#include "pool.h"

namespace fastconv::cpu {

enum class IntegerType : int { kInt8, kUInt8, kInt16, kInt32, kInt64 };

// Maxima of integers, forward; the call's dtype is not looked at.
void max_pool_integers(const CpuPoolCall& call, IntegerType type);
// y[i] = x[place of index i], 0 where that lies outside; elements of `bytes` bytes.
void max_pool_gather(const CpuPoolCall& call, int64_t bytes);
// dx from int64 places: a plane belongs to one thread, which adds in the order of the outputs.
void max_pool_scatter(const CpuPoolCall& call);
// The inverse of the gather; 0 where nothing is sent, and the last of several sent to one place
// stays. False if a place lies outside, which is then told: of several the last, by planes.
bool max_unpool(const CpuPoolCall& call, int64_t bytes, int64_t* wrong);

}  // namespace fastconv::cpu
