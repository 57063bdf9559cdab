//! The command line, and the cases it selects.

use std::str::FromStr;

use clap::{Parser, ValueEnum};
use esamp::Sharing;
use esamp_programs::weights::WeightsArg;

use super::{
    device::DeviceName,
    run::{Case, DistillerName, FilterName},
    subject::{DTypeName, ModelName},
};

/// Measure the overhead of ESamp: the same decode loop with and without it.
#[derive(Debug, Parser)]
pub struct Args {
    /// Fewer rounds, and only the most important configurations.
    #[arg(long)]
    quick: bool,
    /// The reference implementation's workload on a GPU: a 7B shape in bf16, 8 prompts x 16 completions,
    /// min-p 0.05, 256 tokens; the low-rank distiller per prompt, the paper's per prompt and global; and
    /// the first of these on a 0.5B shape.
    #[arg(long, conflicts_with_all = [
        "quick", "model", "groups", "sharing", "distiller", "filter", "beta",
    ])]
    gpu: bool,
    /// Print one JSON object per configuration.
    #[arg(long)]
    pub json: bool,
    /// Rounds per configuration [default: 5; filters other than min-p and quick: 3; beta 0: four times as
    /// many, unless quick]
    #[arg(long)]
    rounds: Option<usize>,
    /// New tokens per completion [default: 48, gpu: 256]
    #[arg(long)]
    tokens: Option<usize>,
    /// Run only configurations whose name contains this.
    #[arg(long, default_value = "")]
    pub only: String,
    /// The model; all except smollm2 have random weights.
    #[arg(long, value_enum, default_value = "smollm2")]
    model: ModelName,
    /// Precision of the model's weights [default: f32, gpu: bf16]
    #[arg(long, value_enum)]
    dtype: Option<DTypeName>,
    #[command(flatten)]
    pub weights: WeightsArg,
    /// The device to compute on [default: flex, gpu: cuda]
    #[arg(long, value_enum)]
    device: Option<DeviceName>,
    /// Prompts x completions, as in 1x16,8x16 [default: 1x1,1x16,4x4,4x16]
    #[arg(long, value_delimiter = ',')]
    groups: Vec<Group>,
    /// Which completions share a distiller.
    #[arg(long, value_enum, default_value = "per-prompt")]
    sharing: SharingName,
    /// Only this distiller [default: both]
    #[arg(long, value_enum)]
    distiller: Option<DistillerName>,
    /// Only this filter [default: all, quick: min-p]
    #[arg(long, value_enum)]
    filter: Option<FilterName>,
    /// Steering strength.
    #[arg(long, default_value_t = 0.25)]
    beta: f32,
    /// Run updates on a separate thread; they take effect one step late.
    #[arg(long)]
    background: bool,
    /// Copy all logits to the host at every step. On a CPU nothing else is done; a GPU otherwise finds the best of each
    /// row.
    #[arg(long)]
    whole_logits: bool,
    /// Passed by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A number of prompts and of completions per prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Group {
    prompts: usize,
    completions: usize,
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected PROMPTSxCOMPLETIONS, both at least 1, got {text}");
        let (prompts, completions) = text.split_once('x').ok_or_else(wrong)?;
        let count = |text: &str| text.parse::<usize>().ok().filter(|&count| count > 0);
        let (prompts, completions) = count(prompts).zip(count(completions)).ok_or_else(wrong)?;
        Ok(Self { prompts, completions })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SharingName {
    PerPrompt,
    Global,
}

impl SharingName {
    fn sharing(self) -> Sharing {
        match self {
            Self::PerPrompt => Sharing::PerPrompt,
            Self::Global => Sharing::Global,
        }
    }
}

/// The cases of one model.
#[derive(Debug)]
pub struct Plan {
    pub model: ModelName,
    pub dtype: DTypeName,
    pub cases: Vec<Case>,
}

impl Args {
    pub fn device(&self) -> DeviceName {
        self.device.unwrap_or(if self.gpu { DeviceName::Cuda } else { DeviceName::Flex })
    }

    /// Rounds of a case. Slow filters get fewer, so that all of them together take less than a quarter of
    /// an hour on two cores. β = 0 gets more, because its difference is smaller than the variation between
    /// rounds.
    pub fn rounds(&self, case: &Case) -> usize {
        let usual = match case.filter {
            FilterName::MinP if !self.quick => 5,
            _ => 3,
        };
        let usual = if case.beta == 0.0 && !self.quick { 4 * usual } else { usual };
        self.rounds.unwrap_or(usual).max(1)
    }

    /// Tokens per completion, at least 3: the first comes from the prefill, and the second is not timed.
    pub fn tokens(&self) -> usize {
        self.tokens.unwrap_or(if self.gpu { 256 } else { 48 }).max(3)
    }

    /// The cases to run, grouped by model.
    pub fn plans(&self) -> Vec<Plan> {
        let plans = if self.gpu {
            let dtype = self.dtype.unwrap_or(DTypeName::Bf16);
            let case = |distiller, sharing| Case {
                distiller,
                sharing,
                ..self.case(Group { prompts: 8, completions: 16 }, FilterName::MinP)
            };
            let cheap = case(DistillerName::LowRank, Sharing::PerPrompt);
            let paper = [Sharing::PerPrompt, Sharing::Global];
            let paper = paper.map(|sharing| case(DistillerName::SwiGlu, sharing));
            let seven = [vec![cheap], paper.to_vec()].concat();
            vec![
                Plan { model: ModelName::Seven, dtype, cases: seven },
                Plan { model: ModelName::Half, dtype, cases: vec![cheap] },
            ]
        } else {
            let dtype = self.dtype.unwrap_or(DTypeName::F32);
            vec![Plan { model: self.model, dtype, cases: self.grid() }]
        };
        let only = |case: &Case| case.name().contains(&self.only);
        let picked = plans
            .into_iter()
            .map(|plan| Plan { cases: plan.cases.into_iter().filter(only).collect(), ..plan });
        picked.filter(|plan| !plan.cases.is_empty()).collect()
    }

    /// All combinations of the requested options.
    fn grid(&self) -> Vec<Case> {
        let groups = match self.groups.as_slice() {
            [] => [(1, 1), (1, 16), (4, 4), (4, 16)]
                .map(|(prompts, completions)| Group { prompts, completions })
                .to_vec(),
            groups => groups.to_vec(),
        };
        let filters = match (self.filter, self.quick) {
            (Some(filter), _) => vec![filter],
            (None, true) => vec![FilterName::MinP],
            (None, false) => vec![FilterName::MinP, FilterName::TopP, FilterName::None],
        };
        let distillers = match self.distiller {
            Some(distiller) => vec![distiller],
            None => vec![DistillerName::LowRank, DistillerName::SwiGlu],
        };
        let mut cases = Vec::new();
        for &filter in &filters {
            for &group in &groups {
                // 64 rows with the slower filters run only if --groups asks for them.
                let large = self.groups.is_empty() && group.prompts * group.completions > 16;
                if large && (self.quick || filter != filters[0]) {
                    continue;
                }
                for &distiller in &distillers {
                    cases.push(Case { distiller, ..self.case(group, filter) });
                }
            }
        }
        if self.groups.is_empty() {
            // β = 0 is plain sampling, so its ratio compares a run with itself and shows the resolution of
            // the measurement.
            let one_by_16 = Group { prompts: 1, completions: 16 };
            cases.push(Case { beta: 0.0, ..self.case(one_by_16, filters[0]) });
        }
        cases
    }

    fn case(&self, group: Group, filter: FilterName) -> Case {
        Case {
            prompts: group.prompts,
            completions: group.completions,
            filter,
            distiller: DistillerName::LowRank,
            beta: self.beta,
            sharing: self.sharing.sharing(),
            background: self.background,
            whole_logits: self.whole_logits,
            // Work that a GPU or a background thread has not finished would be timed as part of the other
            // decoder's step.
            in_turns: self.device().is_cpu() && !self.background,
        }
    }
}
