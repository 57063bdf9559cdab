//! Gradients against finite differences: one step of gradient descent moves each parameter by the slope of the loss.
//! The losses are computed on the CPU, because their differences are less than the rounding error of a GPU's products.

use crate::{
    device,
    golden::{devices, tolerance, values},
};
use burn::{
    module::{ModuleMapper, Param},
    tensor::{Device, Tensor, TensorData},
};
use esamp::{
    HiddenStates,
    distillers::{Distiller, LowRankConfig, OutputStart, SwiGluConfig},
    optim::{Learner, OptimizerConfig},
};

const D_MODEL: usize = 6;
const ROWS: usize = 3;
/// Differences in f32: half the step that makes the truncation error equal to the rounding error at losses around 1.
const H: f32 = 1e-2;

/// Adds `amount` to one number of one parameter, counting all numbers of the module.
struct Nudge {
    at: usize,
    amount: f32,
}

impl ModuleMapper for Nudge {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (at, amount) = (self.at, self.amount);
        let count = param.val().dims().iter().product::<usize>();
        self.at = self.at.wrapping_sub(count);
        if at >= count {
            return param;
        }
        // The one number is in this parameter: no later one may see an index that fits.
        self.at = usize::MAX / 2;
        param.map(|tensor| {
            let (device, shape) = (tensor.device(), tensor.dims());
            let mut numbers = values(tensor);
            numbers[at] += amount;
            Tensor::from_data(TensorData::new(numbers, shape), &device)
        })
    }
}

/// Collects all numbers of a module.
struct Collect(Vec<f32>);

impl burn::module::ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.extend(values(param.val()));
    }
}

fn numbers<D: Distiller>(distiller: &D) -> Vec<f32> {
    let mut all = Collect(Vec::new());
    distiller.visit(&mut all);
    all.0
}

fn states(offset: f32, device: &Device) -> Tensor<2> {
    let numbers: Vec<f32> =
        (0..ROWS * D_MODEL).map(|i| (i as f32 * 1.7 + offset).sin() * 1.3).collect();
    Tensor::<1>::from_data(numbers.as_slice(), device).reshape([ROWS, D_MODEL])
}

fn loss<D: Distiller>(distiller: &D, shallow: &Tensor<2>, deep: &Tensor<2>) -> f64 {
    let pred = values(distiller.predict(shallow.clone()));
    let sum: f64 =
        pred.iter().zip(values(deep.clone())).map(|(p, d)| f64::from(p - d).powi(2)).sum();
    sum / (ROWS * D_MODEL) as f64
}

fn check<D: Distiller>(distiller: D, device: &Device) {
    let (shallow, deep) = (states(0.3, device), states(2.1, device));
    let cpu = if devices().contains(device) { device.clone() } else { Device::flex() };
    let on_cpu = (shallow.clone().to_device(&cpu), deep.clone().to_device(&cpu));
    let mut learner = Learner::new(distiller.clone(), OptimizerConfig::sgd(1.0)).unwrap();
    learner.update(&HiddenStates::new(shallow.clone(), deep.clone()).unwrap());
    let before = numbers(&distiller);
    let after = numbers(learner.distiller());
    assert_eq!(before.len(), distiller.num_params());
    let mut largest = 0.0f64;
    for at in 0..before.len() {
        let at_offset = |amount| {
            let nudged = distiller.clone().map(&mut Nudge { at, amount });
            loss(&nudged.to_device(&cpu), &on_cpu.0, &on_cpu.1)
        };
        let slope = (at_offset(H) - at_offset(-H)) / f64::from(2.0 * H);
        let gradient = f64::from(before[at] - after[at]);
        assert!(
            (slope - gradient).abs() < tolerance(device, 2e-3) * (1.0 + slope.abs()),
            "number {at} of {}: expected the slope {slope}, got the gradient {gradient}",
            before.len()
        );
        largest = largest.max(gradient.abs());
    }
    assert!(largest > 0.05, "expected gradients that could be wrong, got at most {largest}");
}

#[test]
fn swiglu() {
    {
        let device = device();
        let config = SwiGluConfig::new().with_d_hidden(4).with_output_start(OutputStart::FanIn);
        check(config.init(D_MODEL, 3, &device).unwrap(), &device);
    }
}

#[test]
fn low_rank() {
    {
        let device = device();
        check(LowRankConfig::new().with_rank(3).init(D_MODEL, 3, &device).unwrap(), &device);
    }
}
