//! Tests of configurations as found in files, and of rejected ones.

use super::*;

fn small() -> LlamaConfig {
    LlamaConfig {
        d_model: 8,
        d_hidden: 12,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 2,
        vocab_size: 10,
        context_length: 16,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        tied_embeddings: false,
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
    }
}

fn refused(change: impl Fn(&mut LlamaConfig)) -> String {
    let mut config = small();
    change(&mut config);
    config.validate().unwrap_err().to_string()
}

#[test]
fn numbers_that_would_spoil_every_state_are_refused() {
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let ends = |key: &str| format!("key {key}: expected a finite number above 0, got {wrong}");
        assert_eq!(refused(|c| c.rope_theta = wrong), ends("rope_theta"));
        let linear = RopeScaling::Linear { factor: wrong };
        assert_eq!(refused(|c| c.rope_scaling = linear.clone()), ends("rope_scaling.factor"));
        let factors = RopeScaling::Factors(vec![wrong]);
        assert_eq!(refused(|c| c.rope_scaling = factors.clone()), ends("rope_freqs.weight"));
        for (at, key) in
            ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
                .into_iter()
                .enumerate()
        {
            let mut numbers = [8.0, 1.0, 4.0, 8192.0];
            numbers[at] = wrong;
            let message = refused(|c| c.rope_scaling = llama3(numbers));
            assert_eq!(message, ends(&format!("rope_scaling.{key}")));
        }
    }
    for wrong in [-1e-6, f32::NAN, f32::INFINITY] {
        let message = refused(|c| c.rms_norm_eps = wrong);
        let expected = "key rms_norm_eps: expected a finite number of at least 0, got ";
        assert_eq!(message, format!("{expected}{wrong}"));
    }
    for high in [1.0, 0.5] {
        let message = refused(|c| c.rope_scaling = llama3([8.0, 1.0, high, 8192.0]));
        let expected =
            "key rope_scaling.high_freq_factor: expected more than the low_freq_factor, 1, got ";
        assert_eq!(message, format!("{expected}{high}"));
    }
    let message = refused(|c| c.rope_scaling = RopeScaling::Factors(vec![1.0; 2]));
    assert_eq!(message, "key rope_freqs.weight: expected 1 factors, got 2");

    let right = |scaling: RopeScaling| {
        LlamaConfig { rms_norm_eps: 0.0, rope_scaling: scaling, ..small() }.validate().unwrap();
    };
    right(RopeScaling::Linear { factor: 0.5 });
    right(RopeScaling::Factors(vec![2.0]));
    right(llama3([8.0, 1.0, 1.5, 8192.0]));
}

fn llama3([factor, low, high, context]: [f32; 4]) -> RopeScaling {
    RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_context: context,
    }
}

#[test]
fn parameters_are_counted_without_overflow() {
    // Per block: q 8×8, k and v 4×8 each, o 8×8, three MLP matrices 12×8, two norms of 8.
    let block = 64 + 2 * 32 + 64 + 3 * 96 + 16;
    assert_eq!(small().num_params(), 3 * block + 2 * 80 + 8);
    let most = LlamaConfig::MAX_SIZE;
    let huge = LlamaConfig {
        d_model: most,
        d_hidden: most,
        n_layers: most,
        n_heads: most,
        n_kv_heads: most,
        head_dim: most,
        vocab_size: most,
        qkv_bias: true,
        o_bias: true,
        qk_norm: true,
        ..small()
    };
    huge.validate().unwrap();
    assert_eq!(huge.num_params(), usize::MAX);
}
