//! The sampling methods to compare, by name.
//!
//! All arms except `plain` and `top-p` draw from the candidates that min-p 0.05 keeps, so that differences
//! between arms do not come from their filters. Distillers are the paper's (two SwiGLU blocks) unless an
//! arm says otherwise. *Tuned* means its learning rate of 3e-3 (1e-2 for the low-rank one), which an
//! independent study found to suit completions this short.

use esamp::{
    Fire, SamplerConfig, Sampling, Selection, Sharing, TemperatureOrder,
    distillers::{DistillerConfig, LowRankConfig},
    optim::{AdaptiveConfig, OptimizerConfig, TrainingConfig},
    reweighters::ReweighterConfig,
};
use esamp_programs::failure::Failure;

use crate::{
    controls::{ArmSampling, ControlConfig, Matched, sharpened_plain},
    record::{ArmRecord, ErrorName, Rival, Role},
};

/// The min-p threshold of all arms that use min-p.
const MIN_P: f32 = 0.05;
/// The tuned learning rate of the low-rank distiller, for short completions.
const TUNED_LOW_RANK: f64 = 1e-2;
/// The temperature of the first token with FIRE.
const HOT: f32 = 30.0;
/// Number of updates on the prompt before the first token.
const WARM_UP: usize = 20;
/// An update interval so large that the distiller never learns.
const NEVER: usize = 1 << 40;

/// The arms for the held-out split.
pub const HEADLINE: [&str; 8] = [
    "min-p-0.85",
    "min-p-1",
    "min-p-1.2",
    "esamp-paper-0.25",
    "esamp-0.5",
    "orthogonal-1",
    "matched-orthogonal-1",
    "fire",
];

/// All arms with a name of their own, in the order in which they run. In addition, `min-p-T` is an arm for
/// every temperature T.
pub fn all() -> Vec<ArmRecord> {
    let mut arms = vec![
        arm("plain", "temperature 1, no filter", Role::Baseline, Sampling::paper().with_beta(0.0)),
        min_p_at(0.85),
        min_p_at(1.0),
        min_p_at(1.2),
        min_p_at(1.3),
        arm("top-p", "top-p 0.95", Role::Baseline, top_p()),
        arm(
            "fire",
            "FIRE: the first token at temperature 30, min-p",
            Role::Baseline,
            fire(min_p()),
        ),
        arm(
            "arithmetic",
            "arithmetic sampling: evenly spread codes, min-p",
            Role::Baseline,
            min_p().with_selection(Selection::Arithmetic),
        ),
    ];
    for beta in [0.1, 0.25, 0.5, 1.0] {
        arms.push(ArmRecord {
            sampler: SamplerConfig::paper(),
            ..method(
                format!("esamp-paper-{beta}"),
                "ESamp, the paper's distiller and optimizer",
                esamp(beta),
            )
        });
    }
    for beta in [0.1, 0.25, 0.5, 1.0] {
        arms.push(method(format!("esamp-{beta}"), "ESamp, tuned", esamp(beta)));
    }
    for beta in [0.1, 0.25, 0.5, 1.0] {
        let hotter = esamp(beta).with_temperature(1.3);
        arms.push(method(format!("esamp-{beta}-t1.3"), "ESamp, tuned, temperature 1.3", hotter));
    }
    arms.extend(rivals());
    arms.extend(variants());
    arms.extend(unfiltered());
    arms.extend(controls());
    arms
}

/// Methods of other authors that need more of the model than its logits.
fn rivals() -> Vec<ArmRecord> {
    let rival = |name: &str, what: &str, rival: Rival, sampling: Sampling| ArmRecord {
        rival: Some(rival),
        ..arm(name, what, Role::Baseline, sampling)
    };
    let crowding = "embedding crowding: near-duplicates of better candidates are held back";
    vec![
        rival("crowding", &format!("{crowding}, min-p"), Rival::Crowding, min_p()),
        rival(
            "crowding-open",
            &format!("{crowding}, without a filter"),
            Rival::Crowding,
            Sampling::paper().with_beta(0.0),
        ),
        rival(
            "recoding",
            "Recoding-Decoding: a random word in the prompt, a random stem at each sentence, min-p",
            Rival::Recoding,
            min_p(),
        ),
    ]
}

/// Variants of ESamp that each change one setting.
fn variants() -> Vec<ArmRecord> {
    let like = |name: &str, what: &str, sampler: SamplerConfig| ArmRecord {
        sampler,
        ..method(name.to_owned(), what, esamp(0.5))
    };
    let orthogonal =
        |beta: f32| min_p().with_reweighter(ReweighterConfig::Orthogonal).with_beta(beta);
    let warm = "ESamp, tuned, 20 updates on the prompt first";
    let elliptical = |name: &str, what: &str, sampling: Sampling| ArmRecord {
        // Of the claim that a network has to be trained.
        role: Role::Control,
        error: ErrorName::Elliptical,
        ..method(name.to_owned(), what, sampling)
    };
    vec![
        like("esamp-0.5-shared", "ESamp, tuned, one distiller for the batch", {
            tuned().with_sharing(Sharing::Global)
        }),
        like("esamp-0.5-adaptive", "ESamp, tuned, shared and own distiller mixed", {
            tuned().with_sharing(Sharing::Adaptive(AdaptiveConfig::default()))
        }),
        like(
            "esamp-0.5-low-rank-paper",
            "ESamp, low-rank distiller, the reference's AdamW 1e-3",
            low_rank(OptimizerConfig::adam_w(1e-3)),
        ),
        like("esamp-0.5-low-rank", "ESamp, low-rank distiller, tuned", {
            low_rank(OptimizerConfig::adam_w(TUNED_LOW_RANK))
        }),
        ArmRecord {
            prompt_warm_up: WARM_UP,
            ..method("esamp-0.5-warm-up".to_owned(), warm, esamp(0.5))
        },
        ArmRecord {
            sampler: SamplerConfig::paper(),
            prompt_warm_up: WARM_UP,
            ..method(
                "esamp-paper-0.25-warm-up".to_owned(),
                "ESamp, the paper's settings, 20 updates on the prompt first",
                esamp(0.25),
            )
        },
        method("orthogonal-0.5".to_owned(), "orthogonal novelty, tuned", orthogonal(0.5)),
        method("orthogonal-1".to_owned(), "orthogonal novelty, tuned", orthogonal(1.0)),
        method("orthogonal-1-t1.3".to_owned(), "orthogonal novelty, tuned, temperature 1.3", {
            orthogonal(1.0).with_temperature(1.3)
        }),
        method(
            "fire-esamp-0.5".to_owned(),
            "FIRE's hot start, then ESamp, tuned",
            fire(esamp(0.5)),
        ),
        method(
            "arithmetic-esamp-0.5".to_owned(),
            "arithmetic sampling from what ESamp, tuned, makes of the scores",
            esamp(0.5).with_selection(Selection::Arithmetic),
        ),
        elliptical(
            "elliptical-0.5",
            "as esamp-0.5, with the direction of elliptical novelty, without gradients",
            esamp(0.5),
        ),
        elliptical(
            "elliptical-orthogonal-1",
            "as orthogonal-1, with the direction of elliptical novelty, without gradients",
            orthogonal(1.0),
        ),
    ]
}

/// Arms without a filter, for models that give most right answers less than 5 % of the probability of the best one: min-p
/// leaves nothing to choose from there.
fn unfiltered() -> Vec<ArmRecord> {
    let open = |arm: ArmRecord| {
        let settings = Sampling::paper().with_beta(arm.sampling.settings.beta);
        let settings = settings.with_reweighter(arm.sampling.settings.reweighter.clone());
        ArmRecord {
            name: format!("{}-open", arm.name),
            what: format!("{}, without a filter", arm.what),
            sampling: settings.into(),
            ..arm
        }
    };
    let names = ["orthogonal-1", "elliptical-orthogonal-1", "frozen-0.5"];
    let others = variants().into_iter().chain(controls());
    let others = others.filter(|arm| names.contains(&arm.name.as_str()));
    let esamp = method("esamp-0.5".to_owned(), "ESamp, tuned", esamp(0.5));
    std::iter::once(esamp).chain(others).map(open).collect()
}

/// Controls that rule out other explanations. All have β 0.5 and the tuned distiller if they use one.
fn controls() -> Vec<ArmRecord> {
    let scores = |name: &str, what: &str, control: ControlConfig, beta: f32| ArmRecord {
        sampler: tuned(),
        ..arm(name, what, Role::Control, ArmSampling::controlled(esamp(beta), control))
    };
    let distiller = |name: &str, what: &str, sampler: SamplerConfig| ArmRecord {
        sampler,
        ..arm(name, what, Role::Control, esamp(0.5))
    };
    let error = |name: &str, what: &str, error: ErrorName| ArmRecord {
        error,
        sampler: tuned(),
        ..arm(name, what, Role::Control, esamp(0.5))
    };
    let extrapolate = ControlConfig::MatchedRandom(Matched::Extrapolate);
    let orthogonal = ControlConfig::MatchedRandom(Matched::Orthogonal);
    vec![
        scores("matched-0.5", "slope and size of esamp-0.5, a random direction", extrapolate, 0.5),
        scores(
            "matched-orthogonal-0.5",
            "size of orthogonal-0.5, a random direction",
            orthogonal,
            0.5,
        ),
        scores("matched-orthogonal-1", "size of orthogonal-1, a random direction", orthogonal, 1.0),
        error("noise-0.5", "Gaussian noise as long as the distiller's error", ErrorName::Gaussian),
        error(
            "shuffled-0.5",
            "the distiller's errors, exchanged between rows",
            ErrorName::Shuffled,
        ),
        distiller("frozen-0.5", "a distiller that never learns", {
            let never = TrainingConfig::new().with_update_every(NEVER);
            tuned().with_training(never)
        }),
        scores(
            "random-reward-0.5",
            "a random reward of the variance of ESamp's",
            ControlConfig::RandomReward,
            0.5,
        ),
        scores(
            "surprisal-0.5",
            "the model's own surprisal as the reward, of the variance of ESamp's",
            ControlConfig::Surprisal,
            0.5,
        ),
        scores(
            "sharpen-0.5",
            "temperature 1 / 1.5 among the candidates of temperature 1",
            ControlConfig::Sharpen,
            0.5,
        ),
        arm("cool-0.5", "temperature 1 / 1.5, its own candidates", Role::Control, {
            sharpened_plain(&esamp(0.5))
        }),
    ]
}

/// Returns the arms in `names` (`headline`, `all`, or a comma-separated list), in this order.
///
/// # Errors
///
/// An unknown name, or a name that occurs twice.
pub fn named(names: &str) -> Result<Vec<ArmRecord>, Failure> {
    let known = all();
    let names: Vec<&str> = match names {
        "all" => return Ok(known),
        "headline" => HEADLINE.to_vec(),
        names => names.split(',').map(str::trim).collect(),
    };
    let mut arms: Vec<ArmRecord> = Vec::new();
    for name in names {
        let arm = known.iter().find(|arm| arm.name == name).cloned();
        let arm = arm.or_else(|| frontier_named(name)).ok_or_else(|| {
            let known: Vec<&str> = known.iter().map(|arm| arm.name.as_str()).collect();
            Failure::usage(
                format!("--arms: expected the name of an arm, got {name}"),
                &format!(
                    "use headline, all, min-p-TEMPERATURE, plain-TEMPERATURE, top-p-TEMPERATURE, or some of: {}",
                    known.join(", ")
                ),
            )
        })?;
        if arms.iter().any(|other| other.name == arm.name) {
            return Err(Failure::usage(
                format!("--arms: expected each arm once, got {name} twice"),
                "remove one of them",
            ));
        }
        arms.push(arm);
    }
    Ok(arms)
}

/// Min-p at a temperature: a point on the frontier.
pub fn min_p_at(temperature: f32) -> ArmRecord {
    let name = format!("min-p-{temperature}");
    let what = format!("min-p 0.05, temperature {temperature}");
    arm(&name, &what, Role::Frontier, min_p().with_temperature(temperature))
}

/// No filter at a temperature. The frontier of a report is min-p's, so this and [`top_p_at`] are baselines.
pub fn plain_at(temperature: f32) -> ArmRecord {
    let name = format!("plain-{temperature}");
    let what = format!("no filter, temperature {temperature}");
    let plain = Sampling::paper().with_beta(0.0);
    arm(&name, &what, Role::Baseline, plain.with_temperature(temperature))
}

/// Top-p 0.95 at a temperature.
pub fn top_p_at(temperature: f32) -> ArmRecord {
    let name = format!("top-p-{temperature}");
    let what = format!("top-p 0.95, temperature {temperature}");
    arm(&name, &what, Role::Baseline, top_p().with_temperature(temperature))
}

/// Parses `min-p-T`, `plain-T` and `top-p-T`, with T written as this program writes it.
fn frontier_named(name: &str) -> Option<ArmRecord> {
    let (filter, temperature) = name.rsplit_once('-')?;
    let temperature = temperature.parse().ok()?;
    let arm = match filter {
        "min-p" => min_p_at(temperature),
        "plain" => plain_at(temperature),
        "top-p" => top_p_at(temperature),
        _ => return None,
    };
    (arm.name == name && arm.sampling.sampling().validate().is_ok()).then_some(arm)
}

/// Whether an arm is plain sampling at a temperature, with a filter or without.
pub fn is_plain(name: &str) -> bool {
    frontier_named(name).is_some()
}

fn min_p() -> Sampling {
    Sampling::default().with_beta(0.0).with_min_p(MIN_P)
}

fn top_p() -> Sampling {
    Sampling::default().with_beta(0.0).with_top_p(0.95)
}

fn esamp(beta: f32) -> Sampling {
    min_p().with_beta(beta)
}

/// FIRE with a hot first token, drawn from the candidates the arm has without it.
fn fire(sampling: Sampling) -> Sampling {
    sampling.with_fire(Fire::new(HOT)).with_temperature_order(TemperatureOrder::AfterFilters)
}

fn tuned() -> SamplerConfig {
    SamplerConfig::for_short_completions()
}

fn low_rank(optimizer: OptimizerConfig) -> SamplerConfig {
    SamplerConfig::paper()
        .with_distiller(DistillerConfig::LowRank(LowRankConfig::new()))
        .with_optimizer(optimizer)
}

fn method(name: String, what: &str, sampling: Sampling) -> ArmRecord {
    ArmRecord { sampler: tuned(), ..arm(&name, what, Role::Method, sampling) }
}

fn arm(name: &str, what: &str, role: Role, sampling: impl Into<ArmSampling>) -> ArmRecord {
    ArmRecord {
        name: name.to_owned(),
        what: what.to_owned(),
        role,
        sampling: sampling.into(),
        sampler: SamplerConfig::paper(),
        prompt_warm_up: 0,
        error: ErrorName::Own,
        rival: None,
    }
}
