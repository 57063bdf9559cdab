//! The ridge start of the low-rank distiller.

use super::starting_points::{
    Matrix, assert_all_near, assert_near, correction, dot, layer_norm, matrix, mean_square, mse,
    orthonormal, product, tensor, transpose, wave, zip,
};
use crate::{
    device,
    golden::{Golden, tolerance, values},
};
use burn::tensor::Tensor;
use esamp::distillers::{
    Distiller, LowRankConfig, LowRankDistiller, LowRankStart, SourceNorm, SwiGluConfig,
};

/// Ridge regression keeps of each direction `u` of the source, with singular value `s`, the share `s²/(s² + λ')`: the
/// error on the rows that were fitted is `Σ (λ'/(s² + λ'))²·‖uᵀY‖²`, and all of `Y` outside of these directions.
#[test]
fn the_loss_of_a_ridge_start_is_the_one_of_ridge_regression() {
    let device = device();
    let d = 16;
    for (rows, lambda) in [(6, 1e-2), (6, 1.0), (40, 1e-2)] {
        let count = rows.min(d);
        let values: Vec<f64> = (0..count).map(|i| 9.0 * 0.8f64.powi(i as i32)).collect();
        let (left, right) = (orthonormal(count, rows, 0.3), orthonormal(count, d, 1.4));
        let weighted: Matrix =
            right.iter().zip(&values).map(|(row, s)| row.iter().map(|v| v * s).collect()).collect();
        let shallow = product(&transpose(&left), &weighted);
        let deep = wave(rows, d, 2.2);
        let target = zip(&deep, &shallow, |y, x| y - x);

        let penalty = lambda * values.iter().map(|s| s * s).sum::<f64>() / count as f64;
        let inside = product(&left, &target);
        let total: f64 = target.iter().map(|row| dot(row, row)).sum();
        let covered: f64 = inside.iter().map(|row| dot(row, row)).sum();
        let kept = inside.iter().zip(&values);
        let kept = kept.map(|(u, s)| (penalty / (s * s + penalty)).powi(2) * dot(u, u));
        let expected = (kept.sum::<f64>() + total - covered) / (rows * d) as f64;

        let start = LowRankStart::Ridge { rows, lambda };
        let config = LowRankConfig::new().with_rank(d).with_start(start);
        let fresh = config.init(d, 5, &device).unwrap();
        assert_eq!(fresh.rows_to_fit(), rows);
        let [x, y] = [&shallow, &deep].map(|m| tensor(m, &device));
        let fitted = fresh.fit(&x, &y).unwrap();
        let before_norm = zip(&shallow, &correction(&fitted, &shallow), |x, c| x + c);
        let got = mse(&before_norm, &deep);
        assert_near(
            "loss before the norm",
            got,
            expected,
            tolerance(&device, 1e-4) * expected + 1e-8,
        );
        let prediction = matrix(fitted.predict(x.clone()));
        assert_all_near(
            "prediction",
            &prediction,
            &layer_norm(&before_norm),
            tolerance(&device, 1e-4),
        );
        assert_eq!(mean_square(&matrix(fitted.g.val())), 0.0);
        assert_eq!(values_of(&fitted.fit_ridge(&x, &y, lambda).unwrap()), values_of(&fitted));
    }
}

fn values_of(distiller: &LowRankDistiller) -> Vec<f32> {
    let matrices = [&distiller.a, &distiller.g, &distiller.b];
    matrices.into_iter().flat_map(|param| values(param.val())).collect()
}

#[test]
fn a_ridge_start_is_fitted_only_where_it_is_asked_for_and_possible() {
    let device = device();
    let [x, y] = [wave(5, 8, 0.1), wave(5, 8, 1.2)].map(|m| tensor(&m, &device));
    let plain = LowRankConfig::new().with_rank(4).init(8, 0, &device).unwrap();
    assert_eq!(plain.rows_to_fit(), 0);
    assert!(plain.fit(&x, &y).is_none());
    let blocks = SwiGluConfig::new().init(8, 0, &device).unwrap();
    assert!(blocks.rows_to_fit() == 0 && blocks.fit(&x, &y).is_none());

    let wording = |shallow: &Tensor<2>, deep: &Tensor<2>, lambda| {
        plain.fit_ridge(shallow, deep, lambda).unwrap_err().to_string()
    };
    assert_eq!(wording(&x, &y, 0.0), "lambda: expected a number above 0, got 0");
    assert_eq!(wording(&x, &y, f64::NAN), "lambda: expected a number above 0, got NaN");
    let wide = tensor(&wave(5, 9, 0.0), &device);
    assert_eq!(wording(&wide, &y, 1e-2), "shallow rows to fit: expected shape [5, 8], got [5, 9]");
    let short = tensor(&wave(4, 8, 0.0), &device);
    assert_eq!(wording(&x, &short, 1e-2), "deep rows to fit: expected shape [5, 8], got [4, 8]");
    let zeros = Tensor::zeros([5, 8], &device);
    assert_eq!(
        wording(&zeros, &y, 1e-2),
        "shallow rows to fit: expected states that are not all 0, got zeros"
    );
    let broken = y.clone().slice_fill([2..3, 3..4], f32::NAN);
    assert_eq!(
        wording(&x, &broken, 1e-2),
        "rows to fit: expected finite numbers, got one that is not"
    );
    let refused = |rows, lambda| {
        let config = LowRankConfig::new().with_start(LowRankStart::Ridge { rows, lambda });
        config.init(8, 0, &device).unwrap_err().to_string()
    };
    assert_eq!(refused(0, 1e-2), "rows: expected at least 1, got 0");
    assert_eq!(refused(4, -1.0), "lambda: expected a number above 0, got -1");
}

#[test]
fn a_start_is_written_down_in_snake_case() {
    let config = LowRankConfig::new().with_start(LowRankStart::Ridge { rows: 16, lambda: 0.01 });
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(
        written,
        r#"{"rank":64,"source_norm":"none","start":{"ridge":{"rows":16,"lambda":0.01}}}"#
    );
    assert_eq!(serde_json::from_str::<LowRankConfig>(&written).unwrap(), config);
}

/// SmolLM2's own hidden states: what the fit learns from 16 tokens holds for the next 16.
#[test]
fn a_ridge_start_on_a_real_model_is_better_than_a_normal_one() {
    let device = device();
    let base = Golden::open("base.safetensors");
    let states = |key: &str| matrix(base.tensor(key, &device));
    let (shallow, deep) = (states("h1"), states("hN"));
    let [first_x, first_y] = [&shallow[..16], &deep[..16]].map(|m| tensor(&m.to_vec(), &device));
    let (later_x, later_y) = (shallow[16..].to_vec(), deep[16..].to_vec());
    let relative = |distiller: &LowRankDistiller| {
        let got = matrix(distiller.predict(tensor(&later_x, &device)));
        let rows = got.iter().zip(&later_y).map(|(g, y)| {
            let error: f64 = g.iter().zip(y).map(|(g, y)| (g - y).powi(2)).sum();
            (error / dot(y, y)).sqrt()
        });
        rows.sum::<f64>() / later_y.len() as f64
    };
    for source_norm in [SourceNorm::None, SourceNorm::Rms] {
        let config = LowRankConfig::new().with_source_norm(source_norm);
        let normal = config.init(576, 0, &device).unwrap();
        let fitted = normal.fit_ridge(&first_x, &first_y, 1e-2).unwrap();
        assert!(relative(&fitted) < 0.9 * relative(&normal));
    }
}
