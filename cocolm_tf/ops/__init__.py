"""The fused operations, on which the speed of a training step rests.

A Transformer's step is bound by memory as much as by arithmetic: beside its matrix products it
reads and writes activations, once for each operation that TensorFlow runs. So what stands between
two matrix products is one operation here, which XLA compiles into one pass over memory, with a
gradient of its own that is again one pass and keeps as little as possible for it:

- `fusion`: `fused`, which compiles a function where a graph knows its shapes; sums and maxima over
  rows as XLA compiles them well; `barrier`, which bounds what XLA may join.
- `elementwise`: bias, exact GELU, dropout, and the end of a sublayer (bias, dropout, residual sum
  and LayerNorm). Masks of dropout are computed where they are needed, in either direction, from a
  seed and the element's index (`random_bits`), and never stored.
- `attention`: softmax attention between its products, whose gradient computes the probabilities
  again from one number per row; `cudnn_attention`, NVIDIA's own kernel, an option.
- `row_chunks`: functions of rows, such as a loss over a large vocabulary, a chunk at a time.

All compute in float32, whatever the precision of their tensors, and give what plain TensorFlow
would. Outside of XLA, as in eager execution or for unknown shapes, they run as they stand.
"""
