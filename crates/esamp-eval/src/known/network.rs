//! The crate's Llama family as a network with gradients, for sequences that are read at once.

use burn::{
    module::{Module, Param},
    tensor::{
        Device, Int, Tensor, TensorData,
        activation::{silu, softmax},
    },
};
use rand::{SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, Normal};

/// The sizes of a [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkShape {
    pub d_model: usize,
    pub d_hidden: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub vocab: usize,
}

impl NetworkShape {
    /// ε of the norms.
    pub const EPS: f32 = 1e-5;
    /// Base of the rotary frequencies.
    pub const THETA: f64 = 10_000.0;

    /// The width of a head.
    pub fn head_dim(self) -> usize {
        self.d_model / self.n_heads
    }
}

/// A Llama-type decoder with tied embeddings. `esamp`'s own holds plain tensors, which cannot be trained.
#[derive(Module, Debug)]
pub struct Network {
    /// `[vocab, d_model]`; also the LM head.
    pub embedding: Param<Tensor<2>>,
    pub blocks: Vec<NetworkBlock>,
    /// `[d_model]`
    pub norm: Param<Tensor<1>>,
    #[module(skip)]
    shape: NetworkShape,
}

/// One block. Matrices are `[out, in]`, as in checkpoints.
#[derive(Module, Debug)]
pub struct NetworkBlock {
    pub attention_norm: Param<Tensor<1>>,
    pub query: Param<Tensor<2>>,
    pub key: Param<Tensor<2>>,
    pub value: Param<Tensor<2>>,
    pub output: Param<Tensor<2>>,
    pub mlp_norm: Param<Tensor<1>>,
    pub gate: Param<Tensor<2>>,
    pub up: Param<Tensor<2>>,
    pub down: Param<Tensor<2>>,
}

impl Network {
    /// Draws the parameters: normal with deviation `1/√fan-in`, smaller for the projections that are added to the
    /// residual stream; norms 1.
    pub fn new(shape: NetworkShape, seed: u64, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut matrix = |rows: usize, columns: usize, scale: f32| {
            // A deviation above 0 is always valid; the standard normal is never needed.
            let normal = Normal::new(0.0f32, scale / (columns as f32).sqrt());
            let mut draw = || normal.map_or(0.0, |normal| normal.sample(&mut rng));
            let values: Vec<f32> = (0..rows * columns).map(|_| draw()).collect();
            Param::from_tensor(Tensor::<2>::from_data(
                TensorData::new(values, [rows, columns]),
                device,
            ))
        };
        let NetworkShape { d_model, d_hidden, n_layers, vocab, .. } = shape;
        let ones = || Param::from_tensor(Tensor::<1>::ones([d_model], device));
        let added = 1.0 / (2.0 * n_layers as f32).sqrt();
        let embedding = matrix(vocab, d_model, 0.5);
        let blocks = (0..n_layers).map(|_| NetworkBlock {
            attention_norm: ones(),
            query: matrix(d_model, d_model, 1.0),
            key: matrix(d_model, d_model, 1.0),
            value: matrix(d_model, d_model, 1.0),
            output: matrix(d_model, d_model, added),
            mlp_norm: ones(),
            gate: matrix(d_hidden, d_model, 1.0),
            up: matrix(d_hidden, d_model, 1.0),
            down: matrix(d_model, d_hidden, added),
        });
        Self { blocks: blocks.collect(), embedding, norm: ones(), shape }
    }

    /// The sizes.
    pub fn shape(&self) -> NetworkShape {
        self.shape
    }

    /// The logits after each token from place `from` on.
    ///
    /// # Shapes
    ///
    /// - tokens: `[rows, length]`
    /// - output: `[rows, length - from, vocab]`
    pub fn forward(&self, tokens: Tensor<2, Int>, from: usize) -> Tensor<3> {
        let [rows, length] = tokens.dims();
        let d_model = self.shape.d_model;
        let embedding = self.embedding.val();
        let device = embedding.device();
        let x = embedding.clone().select(0, tokens.reshape([rows * length]));
        let mut x = x.reshape([rows, length, d_model]);
        let rope = Rope::new(self.shape.head_dim(), length, &device);
        let mask = future(length, &device);
        for block in &self.blocks {
            x = block.forward(x, self.shape, &rope, &mask);
        }
        let x = normed(x, &self.norm).narrow(1, from, length - from);
        let x = x.reshape([rows * (length - from), d_model]);
        times(x, &self.embedding).reshape([rows, length - from, self.shape.vocab])
    }
}

impl NetworkBlock {
    fn forward(
        &self,
        x: Tensor<3>,
        shape: NetworkShape,
        rope: &Rope,
        mask: &Tensor<4>,
    ) -> Tensor<3> {
        let [rows, length, d_model] = x.dims();
        let flat = |x: Tensor<3>| x.reshape([rows * length, d_model]);
        let (heads, width) = (shape.n_heads, shape.head_dim());
        let source = flat(normed(x.clone(), &self.attention_norm));
        let split = |weight: &Param<Tensor<2>>| {
            times(source.clone(), weight).reshape([rows, length, heads, width]).swap_dims(1, 2)
        };
        let queries = rope.rotate(split(&self.query)).mul_scalar((width as f32).sqrt().recip());
        let keys = rope.rotate(split(&self.key));
        let scores = queries.matmul(keys.swap_dims(2, 3)) + mask.clone();
        let mixed = softmax(scores, 3).matmul(split(&self.value));
        let mixed = mixed.swap_dims(1, 2).reshape([rows * length, d_model]);
        let x = x + times(mixed, &self.output).reshape([rows, length, d_model]);
        let source = flat(normed(x.clone(), &self.mlp_norm));
        let hidden = silu(times(source.clone(), &self.gate)) * times(source, &self.up);
        x + times(hidden, &self.down).reshape([rows, length, d_model])
    }
}

/// `x·Wᵀ`
fn times(x: Tensor<2>, weight: &Param<Tensor<2>>) -> Tensor<2> {
    x.matmul(weight.val().transpose())
}

/// RMSNorm over the last dimension.
fn normed(x: Tensor<3>, weight: &Param<Tensor<1>>) -> Tensor<3> {
    let mean_square = x.clone().square().mean_dim(2);
    let normed = x / mean_square.add_scalar(NetworkShape::EPS).sqrt();
    normed * weight.val().unsqueeze()
}

/// What is added to the scores so that no place attends to a later one, `[1, 1, length, length]`.
fn future(length: usize, device: &Device) -> Tensor<4> {
    let value = |row: usize, column: usize| if column > row { -1e9f32 } else { 0.0 };
    let values: Vec<f32> = (0..length * length).map(|at| value(at / length, at % length)).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, length, length]), device)
}

/// Cosines and sines of the rotary angles, `[1, 1, length, width]` each.
struct Rope {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope {
    fn new(width: usize, length: usize, device: &Device) -> Self {
        let half = width / 2;
        let angle = |at: usize| {
            let (place, pair) = (at / width, at % width % half);
            place as f64 * NetworkShape::THETA.powf(-(pair as f64) / half as f64)
        };
        let table = |of: fn(f64) -> f64| {
            let values = (0..length * width).map(|at| of(angle(at)) as f32).collect();
            Tensor::from_data(TensorData::new::<f32, _>(values, [1, 1, length, width]), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Rotates each pair of dimensions `i` and `i + width / 2` of `[rows, heads, length, width]`.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (first, second) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let turned = Tensor::cat(vec![second.neg(), first], 3);
        x * self.cos.clone() + turned * self.sin.clone()
    }
}
