// Bulk tensor stores. One reads shared memory at some time until the wait that frees the source,
// and writes global memory at some time until the wait that names the group complete, or until the
// kernel ends: what is captured when it is issued has to be there still when the source is free,
// and it lands at once or as late as it may, by the block's seed.
#include <algorithm>
#include <cstring>

#include "access_checks.h"
#include "sm90_state.h"
#include "worker.h"

namespace emu {

namespace {

using Visit = void (*)(unsigned char* to, const unsigned char* from, size_t bytes);

// visit(to, from, bytes) for what the store writes.
void each_run(const TensorStore& store, Visit visit) {
  const uint32_t start = shared_address(store.from);
  std::vector<unsigned char> rows(store.bytes.size());
  for (uint32_t i = 0; i < rows.size(); i += 16)
    std::memcpy(&rows[i], &store.bytes[swizzled(start + i, store.map.swizzle) - start],
                std::min<size_t>(16, rows.size() - i));
  store_box(store.map, store.at, rows.data(), visit);
}

void land(TensorStore& store) {
  if (store.landed) return;
  store.landed = true;
  each_run(store, [](unsigned char* to, const unsigned char* from, size_t bytes) {
    std::memcpy(to, from, bytes);
  });
}

void free_source(StoreGroup& group) {
  if (group.source_free) return;
  group.source_free = true;
  for (const TensorStore& store : group.stores) {
    if (std::memcmp(store.from, store.bytes.data(), store.bytes.size()) != 0) {
      char text[96];
      fail(std::string("shared memory at ") + describe_shared(store.from, text) +
           " was written while a bulk tensor store was reading it");
    }
    // Whoever writes here next is ordered behind this thread's wait.
    note_read(*current, store.from, store.bytes.size());
  }
}

StoreQueue& queue() { return current->block->worker->sm90.stores[current->linear]; }

}  // namespace

void tensor_store(const TensorMap* map, int rank, const int* at, const void* shared, Site site) {
  constexpr const char* kWhat = "bulk tensor store";
  check_map(map, rank, false, kWhat, site);
  check_shared_side(shared, *map, kWhat, site);
  if (map->tf32) fail(std::string(kWhat) + " at " + place(site) + ": the map is one that rounds");
  note_async_read(*current, shared, map->bytes(), kWhat);
  note_read(*current, shared, map->bytes());
  Sm90State& sm90 = current->block->worker->sm90;
  sm90.used = true;
  queue().open.push_back({*map, {}, static_cast<const unsigned char*>(shared), {}, false});
  TensorStore& store = queue().open.back();
  std::copy(at, at + rank, store.at);
  store.bytes.assign(store.from, store.from + map->bytes());
  each_run(store, [](unsigned char* to, const unsigned char*, size_t bytes) {
    note_bulk_store(*current, to, bytes);
  });
  if (sm90.flip(4)) land(store);
}

void bulk_commit() {
  queue().groups.push_back({std::move(queue().open), false});
  queue().open.clear();
}

void bulk_wait_read(unsigned pending) {
  auto& groups = queue().groups;
  for (size_t i = 0; i + pending < groups.size(); ++i) free_source(groups[i]);
}

void bulk_wait(unsigned pending) {
  auto& groups = queue().groups;
  for (; groups.size() > pending; groups.pop_front()) {
    free_source(groups.front());
    for (TensorStore& store : groups.front().stores) {
      land(store);
      each_run(store, [](unsigned char* to, const unsigned char*, size_t bytes) {
        note_bulk_store_landing(*current, to, bytes);
      });
    }
  }
}

void exit_with_stores(StoreQueue& stores) {
  const auto reads = [](const StoreGroup& group) {
    return !group.source_free && !group.stores.empty();
  };
  if (!stores.open.empty() || std::any_of(stores.groups.begin(), stores.groups.end(), reads))
    fail("thread exits with bulk tensor stores that nothing waited for");
  for (StoreGroup& group : stores.groups)
    for (TensorStore& store : group.stores) land(store);
}

}  // namespace emu
