// The tables of pooling kernels, one per file of launchers; pool_registry.cpp puts them in order.
#pragma once
#include "pool_algorithm.h"

namespace fastconv::cuda {

struct PoolTable {
  const PoolInstance* rows;
  int size;
};
extern const PoolTable pool_global_table, pool_planes_table, pool_channels_table;
extern const PoolTable pool_any_table, pool_places_table;

}  // namespace fastconv::cuda
