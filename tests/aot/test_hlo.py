"""Reading compiled programs: on a program written by hand and on one that XLA wrote."""
# ruff: noqa: E501 - lines of a program are as long as they are

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from maxquery_jax.aot import hlo

PROGRAM = """HloModule jit_step

%inside (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %hidden = f32[4]{0} all-reduce(%x), to_apply=%add
}

%body (p: (s32[], f32[8,2])) -> (s32[], f32[8,2]) {
  %p = (s32[], f32[8,2]) parameter(0)
  %halo = f32[1,2]{1,0} collective-permute(%slice), metadata={op_name="jit(step)/net/conv/add"}
  %f = f32[8,2]{1,0} fusion(%halo), kind=kLoop, calls=%inside, metadata={op_name="jit(step)/jvp(Net)/net/conv0/add"}, backend_config={"estimated_cycles":"100"}
  ROOT %t = (s32[], f32[8,2]) tuple(%i, %f)
}

ENTRY %main (a: bf16[16]) -> f32[4] {
  %a = bf16[16]{0} parameter(0)
  %start = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%a), dimensions={0}
  %done = bf16[64]{0} all-gather-done(%start)
  %loop = (s32[], f32[8,2]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %g = f32[4]{0} fusion(%a), kind=kLoop, calls=%inside, metadata={op_name="jit(step)/transpose(jvp(Net))/net/conv0/dot"}, backend_config={"estimated_cycles":"7"}
  ROOT %sum = (f32[4]{0}, f32[2]{0}) all-reduce(%g, %h), to_apply=%add
}
"""


def test_loops_count_as_often_as_they_run_and_fusions_are_one():
    found = hlo.count_collectives(PROGRAM)
    assert {kind: (c.count, c.num_bytes) for kind, c in found.items()} == {
        'all-gather': (1, (32 + 128) // 2),
        'all-reduce': (1, 24),
        'collective-permute': (5, 5 * 8),
    }


def test_cycles_by_layer():
    assert hlo.cycles_by_layer(PROGRAM) == {'net/conv0': 500, 'backward net/conv0': 7}


def test_bytes_of_shapes():
    assert hlo.shape_bytes('(f32[3,4]{1,0}, bf16[])') == 50
    assert hlo.shape_bytes('pred[7]') == 7 and hlo.shape_bytes('s32[]') == 4


def test_a_program_that_xla_wrote():
    """A sum over a sharded axis is one all-reduce of the result's size."""
    mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((16, 32)), NamedSharding(mesh, P('x')))
    text = jax.jit(lambda x: x.sum(0)).lower(x).compile().as_text()
    found = hlo.count_collectives(text)
    assert list(found) == ['all-reduce'] and found['all-reduce'].count == 1
    assert found['all-reduce'].num_bytes == 32 * np.dtype(np.float32).itemsize
