// The tables of pooling kernels, one per file of launchers; pool_registry.cpp puts them in order.
#pragma once
#include "pool_algorithm.h"

namespace fastconv::cuda {

struct PoolTable {
  const PoolInstance* rows;
  int size;
};
extern const PoolTable pool_channels_fprop_table, pool_channels_dgrad_table;
extern const PoolTable pool_planes_fprop_table, pool_planes_dgrad_table;
extern const PoolTable pool_any_fprop_table, pool_any_dgrad_table, pool_places_table;

}  // namespace fastconv::cuda
