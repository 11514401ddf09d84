// Written by winograd_codegen.py, which documents the mathematics; do not edit.
// One-dimensional transforms y = matrix x as straight-line code. V is a value or vector
// type, S its scalar; constants are exact quotients, folded by the compiler.
#pragma once
#include "conv_problem.h"

namespace fastconv {

// F(2, 3) and F(3, 2), points 0, 1, -1, infinity.
struct WinogradF2x2_3x3 {
  static constexpr int kOut = 2;
  static constexpr int kTaps = 3;
  static constexpr int kTile = 4;
  // B^T, of both
  template <class S, class V>
  FC_HOST_DEVICE static void input(const V (&x)[4], V (&y)[4]) {
    const V e1 = x[2];
    const V o1 = x[1];
    y[1] = e1 + o1;
    y[2] = e1 - o1;
    y[0] = x[0] - x[2];
    y[3] = x[3] - x[1];
  }
  // G of F(2, 3)
  template <class S, class V>
  FC_HOST_DEVICE static void filter(const V (&x)[3], V (&y)[4]) {
    const V e1 = (S(1) / S(2)) * x[0] + (S(1) / S(2)) * x[2];
    const V o1 = x[1];
    y[1] = e1 + (S(1) / S(2)) * o1;
    y[2] = e1 - (S(1) / S(2)) * o1;
    y[0] = x[0];
    y[3] = x[2];
  }
  // A^T of F(2, 3)
  template <class S, class V>
  FC_HOST_DEVICE static void output(const V (&x)[4], V (&y)[2]) {
    const V s0 = x[1] + x[2];
    const V d0 = x[1] - x[2];
    y[0] = x[0] + s0;
    y[1] = x[3] + d0;
  }
  // G of F(3, 2): the tile of dy
  template <class S, class V>
  FC_HOST_DEVICE static void wgrad_filter(const V (&x)[2], V (&y)[4]) {
    const V e1 = (S(1) / S(2)) * x[0];
    const V o1 = x[1];
    y[1] = e1 + (S(1) / S(2)) * o1;
    y[2] = e1 - (S(1) / S(2)) * o1;
    y[0] = x[0];
    y[3] = x[1];
  }
  // A^T of F(3, 2)
  template <class S, class V>
  FC_HOST_DEVICE static void wgrad_output(const V (&x)[4], V (&y)[3]) {
    const V s0 = x[1] + x[2];
    const V d0 = x[1] - x[2];
    y[0] = x[0] + s0;
    y[1] = d0;
    y[2] = x[3] + s0;
  }
};

// F(4, 3) and F(3, 4), points 0, 3/4, -3/4, 3/2, -3/2, infinity.
struct WinogradF4x4_3x3 {
  static constexpr int kOut = 4;
  static constexpr int kTaps = 3;
  static constexpr int kTile = 6;
  // B^T, of both
  template <class S, class V>
  FC_HOST_DEVICE static void input(const V (&x)[6], V (&y)[6]) {
    const V e1 = x[4] - (S(9) / S(4)) * x[2];
    const V o1 = x[3] - (S(9) / S(4)) * x[1];
    y[1] = e1 + (S(3) / S(4)) * o1;
    y[2] = e1 - (S(3) / S(4)) * o1;
    const V e3 = x[4] - (S(9) / S(16)) * x[2];
    const V o3 = x[3] - (S(9) / S(16)) * x[1];
    y[3] = e3 + (S(3) / S(2)) * o3;
    y[4] = e3 - (S(3) / S(2)) * o3;
    y[0] = x[4] + (S(81) / S(64)) * x[0] - (S(45) / S(16)) * x[2];
    y[5] = x[5] + (S(81) / S(64)) * x[1] - (S(45) / S(16)) * x[3];
  }
  // G of F(4, 3)
  template <class S, class V>
  FC_HOST_DEVICE static void filter(const V (&x)[3], V (&y)[6]) {
    const V e1 = -(S(128) / S(243)) * x[0] - (S(8) / S(27)) * x[2];
    const V o1 = x[1];
    y[1] = e1 - (S(32) / S(81)) * o1;
    y[2] = e1 + (S(32) / S(81)) * o1;
    const V e3 = (S(32) / S(243)) * x[0] + (S(8) / S(27)) * x[2];
    const V o3 = x[1];
    y[3] = e3 + (S(16) / S(81)) * o3;
    y[4] = e3 - (S(16) / S(81)) * o3;
    y[0] = (S(64) / S(81)) * x[0];
    y[5] = x[2];
  }
  // A^T of F(4, 3)
  template <class S, class V>
  FC_HOST_DEVICE static void output(const V (&x)[6], V (&y)[4]) {
    const V s0 = x[1] + x[2];
    const V d0 = x[1] - x[2];
    const V s1 = x[3] + x[4];
    const V d1 = x[3] - x[4];
    y[0] = x[0] + s0 + s1;
    y[1] = (S(3) / S(4)) * d0 + (S(3) / S(2)) * d1;
    y[2] = (S(9) / S(16)) * s0 + (S(9) / S(4)) * s1;
    y[3] = x[5] + (S(27) / S(64)) * d0 + (S(27) / S(8)) * d1;
  }
  // G of F(3, 4): the tile of dy
  template <class S, class V>
  FC_HOST_DEVICE static void wgrad_filter(const V (&x)[4], V (&y)[6]) {
    const V e1 = -(S(128) / S(243)) * x[0] - (S(8) / S(27)) * x[2];
    const V o1 = x[3] + (S(16) / S(9)) * x[1];
    y[1] = e1 - (S(2) / S(9)) * o1;
    y[2] = e1 + (S(2) / S(9)) * o1;
    const V e3 = (S(32) / S(243)) * x[0] + (S(8) / S(27)) * x[2];
    const V o3 = x[3] + (S(4) / S(9)) * x[1];
    y[3] = e3 + (S(4) / S(9)) * o3;
    y[4] = e3 - (S(4) / S(9)) * o3;
    y[0] = (S(64) / S(81)) * x[0];
    y[5] = x[3];
  }
  // A^T of F(3, 4)
  template <class S, class V>
  FC_HOST_DEVICE static void wgrad_output(const V (&x)[6], V (&y)[3]) {
    const V s0 = x[1] + x[2];
    const V d0 = x[1] - x[2];
    const V s1 = x[3] + x[4];
    const V d1 = x[3] - x[4];
    y[0] = x[0] + s0 + s1;
    y[1] = (S(3) / S(4)) * d0 + (S(3) / S(2)) * d1;
    y[2] = x[5] + (S(9) / S(16)) * s0 + (S(9) / S(4)) * s1;
  }
};

}  // namespace fastconv
