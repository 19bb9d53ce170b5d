#include "kernels/quantize_weights.h"

#include <algorithm>
#include <cmath>

#include "common/expects.h"
#include "kernels/weights.h"

namespace mempool::kernels {

std::int64_t quantize_weights(const float* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* quantized,
                              float* scales) noexcept {
  MEMPOOL_EXPECTS(is_shape(outputs, inputs));
  for (std::int64_t output = 0; output < outputs; ++output) {
    const float* const row = weights + output * inputs;
    float largest = 0;
    for (std::int64_t input = 0; input < inputs; ++input) {
      if (!std::isfinite(row[input])) return output;
      largest = std::max(largest, std::fabs(row[input]));
    }
    const float scale = largest / 127.0F;
    const bool is_zero = scale < 1e-37F;  // its inverse would be infinite
    scales[output] = is_zero ? 0.0F : scale;
    for (std::int64_t input = 0; input < inputs; ++input) {
      const float value = is_zero ? 0.0F : std::nearbyint(row[input] / scale);
      quantized[output * inputs + input] = static_cast<std::int8_t>(std::clamp(value, -127.0F, 127.0F));
    }
  }
  return -1;
}

}  // namespace mempool::kernels
