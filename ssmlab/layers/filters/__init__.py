"""Long filters: what a gated convolution (Hyena, H3, StripedHyena, plain long convolutions) convolves with.

    params(channels)                                      tree of Param
    kernel(params, time, state)                           the filters, without the input: a tree of arrays whose last axis is `channels`
    init_state(channels, batch, max_length, shared=())    what one convolution carries between calls
    convolve(kernel, u, state, segment_ids) -> (y, state) u, y [batch, time, channels, *shared]; the shared axes have one filter per channel
    taps(params, length)                                  the filter itself, [length, channels]: for tests, plots and distillation
    flops(channels, length, shared=1)                     forward FLOPs per token of one sequence of `length` tokens

A kernel is computed once per call and may be cut along its last axis where one layer has several convolutions in a row.
`max_length` is how many tokens of one document the filter reaches, None without a bound, and `room(state)` how many are left of them; a longer
call raises ValueError, and generation counts over calls.
"""

from ssmlab.layers.filters.base import Filtered, LongFilter
from ssmlab.layers.filters.explicit import ExplicitFilter
from ssmlab.layers.filters.implicit import ImplicitFilter
from ssmlab.layers.filters.modal import DiagonalSSM, ModalFilter
