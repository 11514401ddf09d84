// Blocks of a cluster: their barrier, and how one reaches another's shared memory. What a block
// does to a peer is good only between two barriers of the cluster: before the first a peer may not
// have begun, behind the last it may have exited.
#include <cstring>

#include "access_checks.h"
#include "worker.h"

namespace emu {

unsigned Cluster::live() const {
  unsigned threads = 0;
  for (const Worker* member : members) threads += member->block.live;
  return threads;
}

unsigned cluster_rank() { return current->block->rank; }

void release_cluster(Cluster& cluster) {
  cluster.arrived = 0;
  for (Worker* member : cluster.members) {
    Block& block = member->block;
    block.cluster_epoch = ++block.epoch;
    block.peer_read_low = block.peer_read_high = nullptr;
    block.touched = false;
    for (Mbarrier& barrier : member->sm90.barriers) barrier.clustered = barrier.fenced;
    for (unsigned i = 0; i < block.threads; ++i)
      if (block.fibers[i].wait == Wait::kClusterBarrier) wake(block.fibers[i]);
  }
}

void cluster_barrier(Site site) {
  Cluster& cluster = *current->block->cluster;
  if (++cluster.arrived == cluster.live())
    release_cluster(cluster);
  else
    wait_for(Wait::kClusterBarrier, site);
}

Worker& peer_of(unsigned rank, const char* what, Site site) {
  const Cluster& cluster = *current->block->cluster;
  if (rank >= cluster.members.size())
    fail(std::string(what) + " at " + place(site) + ": block " + std::to_string(rank) +
         " of a cluster of " + std::to_string(cluster.members.size()));
  Worker& peer = *cluster.members[rank];
  if (peer.block.live == 0)
    fail(std::string(what) + " at " + place(site) + ": block " + std::to_string(rank) +
         " of the cluster has exited");
  if (rank != current->block->rank) peer.block.touched = true;
  return peer;
}

unsigned char* peer_place(const Worker& peer, const void* place) {
  return peer.shared.dynamic_base() + shared_address(place);
}

void peer_read(void* to, const void* place, unsigned bytes, unsigned rank, Site site) {
  Worker& peer = peer_of(rank, "ld.shared::cluster", site);
  const unsigned char* const from = peer_place(peer, place);
  if (!peer.shared.contains(from, bytes))
    fail("ld.shared::cluster at " + emu::place(site) + " outside of the block's shared memory");
  if (&peer == current->block->worker)
    note_read(*current, from, bytes);
  else
    note_peer_read(peer, from, bytes);
  std::memcpy(to, from, bytes);
}

}  // namespace emu
