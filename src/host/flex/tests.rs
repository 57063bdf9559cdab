//! Tests each operation against burn's.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::pick;
#[cfg(feature = "llama")]
use super::{gate, norm, rotate};
use crate::host::*;

/// Values between −scale and scale.
pub(super) fn wave<const D: usize>(shape: [usize; D], step: f32, scale: f32) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let numbers: Vec<f32> = (0..count).map(|i| (i as f32 * step).sin() * scale).collect();
    Tensor::from_data(TensorData::new(numbers, shape), &Device::flex())
}

pub(super) fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Compares with the same computation on tensors with autodiff, which use burn's operations.
fn assert_same<const D: usize>(here: Tensor<D>, burns: Tensor<D>) {
    assert_eq!(here.dims(), burns.dims());
    for (at, (here, burns)) in numbers(here).into_iter().zip(numbers(burns.inner())).enumerate() {
        assert!((here - burns).abs() <= 2e-6 * burns.abs().max(1.0), "{at}: {here} {burns}");
    }
}

#[cfg(feature = "llama")]
#[test]
fn each_is_what_burn_computes() {
    for rows in [1, 3, 64] {
        let both = wave([rows, 2 * 770], 0.37, 30.0);
        assert!(gate::silu_gated(&both).is_some());
        assert_same(silu_gated(both.clone()), silu_gated(both.autodiff()));

        let (x, weight) = (wave([rows, 1, 577], 0.91, 5.0), wave([577], 0.11, 2.0));
        assert!(norm::rms_norm(&x, &weight, 1e-5).is_some());
        assert_same(
            rms_norm(x.clone(), &weight, 1e-5),
            rms_norm(x.autodiff(), &weight.autodiff(), 1e-5),
        );

        let heads = wave([rows, 2, 5, 64], 0.73, 3.0);
        let (cos, sin) = (wave([rows, 2, 1, 64], 0.2, 1.0), wave([rows, 2, 1, 64], 0.3, 1.0));
        let view = heads.narrow(2, 1, 3);
        assert!(rotate::rotate_halves(&view, &cos, &sin).is_some());
        assert_same(
            rotate_halves(view.clone(), &cos, &sin),
            rotate_halves(view.autodiff(), &cos.autodiff(), &sin.autodiff()),
        );
    }
}

/// Rows of different lengths, and from one new token to more than fit into a part.
#[cfg(feature = "llama")]
#[test]
fn attention_is_what_burn_computes() {
    for (group, width, columns) in [(3, 40, 21), (1, 64, 9), (2, 7, 130), (5, 16, 40)] {
        let (rows, kv_heads, capacity) = (3, 2, columns + 11);
        let shape = [rows, kv_heads, capacity, width];
        let (keys, values) = (wave(shape, 0.71, 2.0), wave(shape, 0.13, 3.0));
        for new in [1, 2, 3, 8, 9].into_iter().chain((columns > 30).then_some(30)) {
            let queries = wave([rows, kv_heads, group * new, width], 0.37, 2.0);
            let starts = [0, (columns - new) / 2, columns - new];
            let seen = Seen { keys: &keys, values: &values, columns, new, starts: &starts };
            assert!(super::attend::attend(&queries, &seen).is_some());
            let here = attend(queries.clone(), &seen, &Mask::default());
            let (keys, values) = (keys.clone().autodiff(), values.clone().autodiff());
            let with_gradients = Seen { keys: &keys, values: &values, ..seen };
            let queries = queries.autodiff();
            assert!(super::attend::attend(&queries, &with_gradients).is_none());
            assert_same(here, attend(queries, &with_gradients, &Mask::default()));
        }
    }
}

/// Nor on how many tokens are new, so a prompt gets the same numbers in pieces and at once.
#[cfg(feature = "llama")]
#[test]
fn attention_of_a_row_does_not_depend_on_the_others() {
    let (rows, kv_heads, group, width, columns, new) = (4, 2, 3, 64, 90, 20);
    let shape = [rows, kv_heads, columns, width];
    let (keys, values) = (wave(shape, 0.71, 2.0), wave(shape, 0.13, 3.0));
    let queries = wave([rows, kv_heads, group * new, width], 0.37, 2.0);
    let seen = Seen { keys: &keys, values: &values, columns, new, starts: &[0, 7, 33, 70] };
    let all = attend(queries.clone(), &seen, &Mask::default());
    for (row, start) in seen.starts.iter().copied().enumerate() {
        // The row alone: without its padding, and with its last query only.
        let alone = |states: &Tensor<4>| {
            states.clone().slice([row..row + 1, 0..kv_heads, start..columns, 0..width])
        };
        let (keys, values) = (alone(&keys), alone(&values));
        let last = |of: &Tensor<4>, row| {
            let of = of.clone().slice([row..row + 1, 0..kv_heads, 0..group * new, 0..width]);
            of.reshape([1, kv_heads, group, new, width])
                .narrow(3, new - 1, 1)
                .reshape([1, kv_heads, group, width])
        };
        let (columns, new) = (columns - start, 1);
        let (keys, values) = (keys + 0.0, values + 0.0); // views would be left to burn
        let seen = Seen { keys: &keys, values: &values, columns, new, starts: &[0] };
        let one = attend(last(&queries, row), &seen, &Mask::default());
        assert_eq!(numbers(one), numbers(last(&all, row)), "row {row}");
    }
}

#[cfg(feature = "llama")]
#[test]
fn a_key_that_is_not_a_number_is_not_hidden() {
    let values = wave([3, 2, 32, 40], 0.13, 3.0);
    let keys = values.clone().mul_scalar(f32::NAN);
    let queries = wave([3, 2, 3, 40], 0.37, 2.0);
    let seen = Seen { keys: &keys, values: &values, columns: 21, new: 1, starts: &[0; 3] };
    assert!(super::attend::attend(&queries, &seen).is_some());
    let mixed = attend(queries, &seen, &Mask::default());
    assert!(numbers(mixed).into_iter().all(f32::is_nan));
}

#[test]
fn picked_rows_are_those_that_burn_picks() {
    let (x, weight) = (wave([5, 37], 0.91, 1.0), wave([101, 37], 0.37, 1.0));
    let tokens: Vec<i32> = (0..5 * 40).map(|i| i * 7919 % 101).collect();
    let tokens = TensorData::new(tokens, [5, 40]);
    let picked = Tensor::<2, Int>::from_data(tokens, &Device::flex());
    assert!(pick::times_rows_at(&x, &weight, &picked).is_some());
    assert!(pick::times_rows_at(&x.clone().autodiff(), &weight, &picked).is_none());
    let whole = x.clone().matmul(weight.clone().transpose());
    assert_same(times_rows_at(x, &weight, &picked), whole.gather(1, picked.clone()).autodiff());
    let short = weight.narrow(0, 0, 100);
    assert!(pick::times_rows_at(&wave([5, 37], 0.9, 1.0), &short, &picked).is_none());
}

/// The negative control of the test above: tensors with autodiff, of another type, or empty are left to burn.
#[cfg(feature = "llama")]
#[test]
fn other_work_is_left_to_burn() {
    let both = wave([2, 8], 0.37, 1.0);
    assert!(gate::silu_gated(&both.clone().autodiff()).is_none());
    assert!(gate::silu_gated(&both.clone().cast(DType::F16)).is_none());
    assert!(norm::rms_norm(&both.clone().autodiff(), &wave([8], 0.1, 1.0), 0.0).is_none());
    let half = wave([8], 0.1, 1.0).cast(DType::F16);
    assert!(norm::rms_norm(&both, &half, 0.0).is_none());
}

#[cfg(feature = "llama")]
#[test]
fn extreme_gates_are_what_they_should_be() {
    let both = Tensor::<2>::from_data(
        [[-1e30f32, -100.0, 100.0, 1e30, 1.0, 2.0, 3.0, 4.0]],
        &Device::flex(),
    );
    assert_eq!(numbers(silu_gated(both)), [0.0, 0.0, 300.0, 4e30]);
}
