#include <vector>

#include "pool_tables.h"

namespace fastconv::cuda {
namespace {
// In order of preference; the kernels of any window take everything.
const PoolTable* const kTables[] = {&pool_global_table, &pool_planes_table, &pool_channels_table,
                                    &pool_any_table, &pool_places_table};
}  // namespace

PoolInstanceList pool_instances() {
  static const std::vector<const PoolInstance*> all = [] {
    std::vector<const PoolInstance*> rows;
    for (const PoolTable* table : kTables)
      for (int i = 0; i < table->size; ++i) rows.push_back(&table->rows[i]);
    return rows;
  }();
  return {all.data(), static_cast<int>(all.size())};
}

const PoolInstance* choose_pool_instance(const PoolCall& call, PoolPass pass, std::string* reason) {
  const Layout layout = call.channels_last ? Layout::kNHWC : Layout::kNCHW;
  // Both move elements by what a maximum kept.
  const bool moves = pass == PoolPass::kGather || pass == PoolPass::kUnpool;
  const PoolKind kind = moves ? PoolKind::kMax : call.kind;
  std::string why = "no kernel for this pass, kind, dtype and layout";
  const PoolInstanceList list = pool_instances();
  for (int i = 0; i < list.size; ++i) {
    const PoolInstance& instance = *list.data[i];
    if (instance.pass != pass || instance.kind != kind || instance.dtype != call.dtype ||
        instance.layout != layout)
      continue;
    std::string refused = instance.applicable(call);
    if (refused.empty()) return &instance;
    why = std::move(refused);
  }
  if (reason != nullptr) *reason = why;
  return nullptr;
}

}  // namespace fastconv::cuda
