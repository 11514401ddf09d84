// Seconds that a plan takes: its counts of multiply-adds, staged elements, stored elements and
// tasks, times constants fitted on one core of an AMD Zen 3 (AVX2, about 3 GHz) over the
// convolution layers of ResNet-50, VGG-16, MobileNet, EfficientNet, ConvNeXt and ResNeXt, N = 1.
// Baseline and AVX-512 constants are scaled by vector width and issue rate, not measured.
#include <algorithm>

#include "conv_direct_plan.h"

namespace fastconv::cpu {
namespace {

struct Constants {
  double panel_mac, vector_mac;  // per multiply-add, padding of vectors and panels counted
  double copy, gather;           // per staged element: vector copies, element by element
  double store, scatter;         // per stored element, likewise
  double task, step;             // per task, per call of a register tile
  double memory;                 // per byte of input and output, first touch included
  double region;                 // per parallel region
};
constexpr Constants kAvx2Float{0.0225e-9, 0.030e-9, 0.15e-9, 0.9e-9,   0.12e-9,
                               0.8e-9,    60e-9,    9e-9,    0.045e-9, 3e-6};

}  // namespace

double direct_cost(const DirectPlan& g, int threads, int vec_bytes) {
  const Constants& k = kAvx2Float;
  const double acc = g.dtype == DType::kFloat64 ? 8 : 4;
  // Without fused multiply-add (16-byte vectors) a product costs two instructions.
  const double speed = vec_bytes / 32.0 * 4 / acc * (vec_bytes < 32 ? 0.6 : 1);
  const double lanes = vec_bytes / acc;
  const bool half = g.dtype != DType::kFloat32 && g.dtype != DType::kFloat64;
  const bool wgrad = g.direction == Direction::kWgrad;
  const DirectAxis* a = g.axis;

  const double tiles = double(g.N) * a[0].tiles * a[1].tiles * a[2].tiles;
  const double slots =
      double(a[0].runs * a[0].run) * (a[1].runs * a[1].run) * (a[2].runs * a[2].run);
  const double outputs = double(g.N) * a[0].out * a[1].out * a[2].out;
  const double vector_outputs =
      outputs / a[2].out * a[2].tiles * ((a[2].tile + int64_t(lanes) - 1) / int64_t(lanes)) * lanes;
  const double channels_in = double(g.groups) * g.Ci, channels_out = double(g.groups) * g.Ko;
  const double depth = double(g.Ci) * g.taps;
  const bool vector = g.kernel != DirectKernel::kPanel;
  // A unit-stride row is copied by vectors; a step of 2 is a shuffle more.
  const double copy = a[2].step <= 2 ? k.copy * (half ? 1.5 : 1) : k.gather;

  double seconds = 0;
  double staged = tiles * slots * channels_in;
  if (vector) {
    const double macs =
        (g.kernel == DirectKernel::kLanes ? outputs : vector_outputs) * channels_out * depth;
    seconds += macs * k.vector_mac / speed / (g.Ko > 1 ? 1.6 : 1);
    seconds += macs / lanes / std::max(1.0, depth) / 8 * k.step;
    if (wgrad)
      staged += outputs * channels_out;
    else
      seconds += outputs * channels_out * (a[2].out_step == 1 ? k.store : k.scatter);
  } else {
    const double columns = double(g.groups) * g.panels * g.panel;
    seconds += outputs * columns * depth * k.panel_mac / speed;
    seconds += outputs * columns / lanes / 12 * g.ci_blocks * k.step;
    staged *= g.panel_splits;
    if (wgrad)
      seconds += outputs * columns * g.ci_blocks * k.scatter;
    else
      seconds += outputs * channels_out * k.scatter;
  }
  seconds += staged * copy + double(g.tasks) * k.task;
  const double bytes = half ? 2 : acc;
  seconds += bytes * k.memory *
             (double(g.N) * a[0].in * a[1].in * a[2].in * channels_in + outputs * channels_out);
  seconds += channels_out * depth * k.gather;  // weights packed, or the gradient stored
  const double used = std::max(1.0, std::min(double(threads), double(g.tasks)));
  // Two threads, dense layers of ResNet-50, VGG-16 and GoogLeNet: a third longer than an even share
  // of one thread's time.
  if (threads > 1) seconds *= vector ? 1.1 : 1.33;
  if (vector && wgrad) seconds *= 1.8;                  // depthwise layers of MobileNetV2
  if (!vector && wgrad && g.taps == 1) seconds *= 1.2;  // 1x1 layers, the same three networks
  // Gradients toward a three-channel image: 1.25 times the count from NCHW, 1.9 from channels_last.
  if (g.direction == Direction::kDgrad && g.groups == 1 && g.Ko < 8) seconds *= 1.5;
  return seconds / used + (threads > 1 ? 2 * k.region : 0);
}

}  // namespace fastconv::cpu
