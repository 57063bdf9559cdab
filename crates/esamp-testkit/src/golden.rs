//! Reads golden files and compares values with them.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

/// The path of a golden file or folder: in `tests/golden` of the repository, or in the folder that the
/// environment variable `ESAMP_GOLDEN` names, for test programs that run on a different machine than the
/// one that built them.
pub fn path(name: &str) -> PathBuf {
    let folder = match std::env::var_os("ESAMP_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
    };
    folder.join(name)
}

/// One golden file.
#[derive(Clone, Debug)]
pub struct Golden {
    bytes: Vec<u8>,
    name: String,
}

impl Golden {
    /// Opens a file of tensors.
    pub fn open(name: &str) -> Self {
        let path = path(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| {
            panic!("{}: {error} (golden files come with the repository only)", path.display())
        });
        Self { bytes, name: name.to_owned() }
    }

    /// Whether the file has a tensor `key`.
    pub fn has(&self, key: &str) -> bool {
        self.file().tensor(key).is_ok()
    }

    /// The values of an `f32` tensor.
    pub fn values(&self, key: &str) -> Vec<f32> {
        let file = self.file();
        let view = file.tensor(key).unwrap_or_else(|_| panic!("{}: no {key}", self.name));
        assert_eq!(view.dtype(), Dtype::F32, "{key}");
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// The values of an integer or boolean tensor.
    pub fn ints(&self, key: &str) -> Vec<i64> {
        let file = self.file();
        let view = file.tensor(key).unwrap_or_else(|_| panic!("{}: no {key}", self.name));
        let data = view.data();
        match view.dtype() {
            Dtype::I64 => {
                data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            Dtype::I32 => data
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            Dtype::BOOL | Dtype::U8 => data.iter().map(|&b| i64::from(b)).collect(),
            other => panic!("{key}: {other:?}"),
        }
    }

    /// The filter settings in the file (temperature, top-k, top-p, min-p), each with the key of its keep
    /// mask.
    pub fn filters(&self) -> Vec<(String, [f32; 4])> {
        let file = self.file();
        let mut keys: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
        keys.sort();
        let masks = keys.iter().filter_map(|key| {
            let toy = key.strip_suffix(".T_topk_topp_minp").map(|name| format!("{name}.keep"));
            Some((key, toy.or_else(|| Some(format!("keep{}", key.strip_prefix("params")?)))?))
        });
        masks.map(|(key, mask)| (mask, self.values(key).try_into().unwrap())).collect()
    }

    /// The shape of a tensor.
    pub fn shape(&self, key: &str) -> Vec<usize> {
        self.file().tensor(key).unwrap().shape().to_vec()
    }

    /// An `f32` tensor on `device`.
    pub fn tensor<const D: usize>(&self, key: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.values(key), self.shape(key)), device)
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }
}

/// The CPU devices for numeric tests: flex, and ndarray if it is built in.
pub fn devices() -> Vec<Device> {
    vec![
        Device::flex(),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]
        Device::ndarray(),
    ]
}

/// The tolerance for values that are computed from products on `device`, where `on_cpu` is the tolerance on a CPU. GPUs
/// may multiply `f32` on tensor cores in TF32, whose mantissa has ten bits.
pub fn tolerance(device: &Device, on_cpu: f64) -> f64 {
    const TF32: f64 = 1e-2;
    if devices().contains(device) { on_cpu } else { on_cpu.max(TF32) }
}

/// The values of an `f32` tensor.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Asserts equality within a tolerance relative to the largest expected magnitude.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let worst = got
        .iter()
        .zip(expected)
        .map(|(g, e)| (g - e).abs())
        .fold(0.0f32, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) });
    assert!(
        worst <= tolerance * largest,
        "{what}: expected within {tolerance:e} of the largest magnitude {largest}, got {:e}",
        worst / largest
    );
}
