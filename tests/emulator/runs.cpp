#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

#include "flags_interface.h"
#include "guarded_buffers.h"
#include "sm90_interface.h"
#include "worker.h"

namespace emu {

namespace {

// The result of a run so far; `begin_run` holds `turn` until `end_run`.
struct Run {
  std::mutex turn, mutex;
  Settings settings;
  Statistics statistics;
  std::string error;
  std::vector<std::unique_ptr<Worker>> workers;
};
Run& run() {
  static Run* const r = new Run;  // never destroyed: a fiber may be stopped in it at exit
  return *r;
}
int start_launch(const void* kernel, void (*invoke)(void*), void* arguments, size_t argument_bytes,
                 dim3 grid, dim3 block, size_t dynamic_bytes, unsigned cluster, bool ordered);

}  // namespace

void record(const Block& block, const Fiber* fiber, const std::string& what) {
  std::string text = block.launch->kernel + ": " + what + " [block " + coordinates(block.index);
  if (fiber != nullptr) text += " thread " + coordinates(fiber->thread);
  text += "]";
  const std::lock_guard<std::mutex> lock(run().mutex);
  block.launch->failed = true;
  if (run().error.empty()) run().error = std::move(text);
}

// --- runs and launches

void begin_run(const Settings& settings) {
  run().turn.lock();
  run().settings = settings;
  run().statistics = Statistics();
  run().error.clear();
}

std::string end_run(Statistics* statistics) {
  if (statistics != nullptr) *statistics = run().statistics;
  std::string error = std::move(run().error);
  run().error.clear();
  run().turn.unlock();
  return error;
}

int run_launch(const void* kernel, void (*invoke)(void*), void* arguments, size_t argument_bytes,
               dim3 grid, dim3 block, size_t dynamic_bytes) {
  return run_cluster_launch(kernel, invoke, arguments, argument_bytes, grid, block, dynamic_bytes,
                            1);
}

int run_cluster_launch(const void* kernel, void (*invoke)(void*), void* arguments,
                       size_t argument_bytes, dim3 grid, dim3 block, size_t dynamic_bytes,
                       unsigned cluster) {
  return start_launch(kernel, invoke, arguments, argument_bytes, grid, block, dynamic_bytes,
                      cluster, false);
}

int run_ordered_launch(const void* kernel, void (*invoke)(void*), void* arguments,
                       size_t argument_bytes, dim3 grid, dim3 block, size_t dynamic_bytes,
                       unsigned cluster) {
  return start_launch(kernel, invoke, arguments, argument_bytes, grid, block, dynamic_bytes,
                      cluster, true);
}

namespace {
int start_launch(const void* kernel, void (*invoke)(void*), void* arguments, size_t argument_bytes,
                 dim3 grid, dim3 block, size_t dynamic_bytes, unsigned cluster, bool ordered) {
  Run& r = run();
  if (!r.error.empty()) return cudaErrorLaunchFailure;
  Launch launch;
  launch.kernel = kernel_name(kernel);
  std::string wrong = check_configuration(kernel, grid, block, dynamic_bytes);
  if (cluster < 1 || cluster > 8 || grid.x % cluster != 0)
    wrong = "clusters of " + std::to_string(cluster) + " blocks in a grid of " +
            std::to_string(grid.x) + ": at most 8, and the grid a multiple";
  if (!wrong.empty()) {
    r.error = launch.kernel + ": invalid launch configuration: " + wrong;
    return cudaErrorInvalidConfiguration;
  }
  launch.invoke = invoke;
  launch.arguments = arguments;
  launch.argument_bytes = argument_bytes;
  launch.grid = grid;
  launch.extent = block;
  launch.dynamic_bytes = dynamic_bytes;
  launch.seconds = r.settings.seconds;
  launch.check_accesses = r.settings.check_accesses;
  launch.number = r.statistics.launches;
  launch.cluster = cluster;
  launch.blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z / cluster;
  const uint64_t most = r.settings.block_limit;
  launch.limit = std::min(launch.blocks, most / cluster + (most % cluster != 0));
  launch.seed = mix(r.settings.seed ^ mix(r.statistics.launches));
  launch.first = launch.seed % launch.blocks;
  launch.step = launch.seed / 7 % launch.blocks;
  while (std::gcd(launch.step, launch.blocks) != 1) ++launch.step;

  const uint64_t blocks = launch.limit * cluster;
  const uint64_t threads = blocks * block.x * block.y * block.z;
  launch.ordered = ordered;
  size_t workers = 0;
  if (ordered) {
    workers = run_in_order(launch, r.workers);
  } else {
    // Starting an OS thread costs as much as a few hundred fibers.
    const uint64_t useful = threads < 2048 ? 1 : launch.limit;
    workers = static_cast<size_t>(std::min<uint64_t>(useful, std::max(1, r.settings.workers)));
    while (r.workers.size() < workers) r.workers.push_back(std::make_unique<Worker>());
    std::vector<std::thread> others;
    for (size_t i = 1; i < workers; ++i)
      others.emplace_back([&launch, &r, i] { r.workers[i]->run(launch); });
    r.workers[0]->run(launch);
    for (std::thread& other : others) other.join();
  }

  r.statistics.records.push_back({launch.kernel, launch.blocks * cluster,
                                  static_cast<uint64_t>(block.x) * block.y * block.z,
                                  dynamic_bytes});
  ++r.statistics.launches;
  r.statistics.blocks += blocks;
  r.statistics.threads += threads;
  r.statistics.switches += launch.switches;
  for (size_t i = 0; i < workers; ++i)
    r.statistics.shared_bytes =
        std::max<uint64_t>(r.statistics.shared_bytes, r.workers[i]->shared.most_used());
  return launch.failed ? cudaErrorLaunchFailure : cudaSuccess;
}
}  // namespace

}  // namespace emu
