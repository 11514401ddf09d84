// What the cost model of the convolutions by TMA and wgmma makes of a problem, for whoever asks why
// an instance was chosen. No CUDA headers.
#pragma once
#include "conv_algorithm.h"

namespace fastconv::cuda {

struct TmaFigures {
  int64_t clusters;          // tiles of clusters
  int64_t rounds;            // of as many clusters as the device holds
  int64_t k_tiles;           // of one block
  double multiply_s;         // the tensor cores' time, where nothing else is waited for
  double l2_bytes;           // of operands, and of sums that one cluster leaves for another
  double l2_bytes_per_flop;  // operands' alone, of what the tensor cores do, tiles' edges included
  double wave_efficiency;    // what they do, of what those of all SMs could in the same rounds
  double hand_over_s;        // of multiply_s: sums that go through L2 where tiles are shared
};

// Of the instance of that name; false when there is none.
FC_API bool tma_figures(const char* name, const ConvProblem&, const Device&, TmaFigures*);

}  // namespace fastconv::cuda
