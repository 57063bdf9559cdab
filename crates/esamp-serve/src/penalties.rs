//! The fields that lower or raise the logits of tokens which have occurred.

use esamp::{Dry, Penalties, TokenId, llama::Tokenizer};

use crate::{
    error::ApiError,
    fields::{Fields, shown},
};

/// The texts that end a repetition if the request does not say, as in llama.cpp's server.
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// Reads the penalties of a request.
pub(crate) fn penalties(body: &mut Fields, tokenizer: &Tokenizer) -> Result<Penalties, ApiError> {
    let signed = |p: f32| (-2.0..=2.0).contains(&p);
    let mut penalties = Penalties::new();
    if let Some(p) = body.number("presence_penalty", "a number from -2 to 2", signed)? {
        penalties = penalties.with_presence(p);
    }
    if let Some(p) = body.number("frequency_penalty", "a number from -2 to 2", signed)? {
        penalties = penalties.with_frequency(p);
    }
    let positive = |p: f32| p > 0.0 && p <= 10.0;
    let expected = "a number above 0 and at most 10";
    if let Some(p) = body.number("repetition_penalty", expected, positive)? {
        penalties = penalties.with_repetition(p);
    }
    if let Some(tokens) = body.count("no_repeat_ngram_size", 0)? {
        penalties = penalties.with_no_repeat_ngram(tokens);
    }
    let dry = dry(body, tokenizer)?;
    Ok(if let Some(dry) = dry { penalties.with_dry(dry) } else { penalties })
}

/// Reads the fields of DRY, under the names of llama.cpp's server. `None` if it is off.
fn dry(body: &mut Fields, tokenizer: &Tokenizer) -> Result<Option<Dry>, ApiError> {
    let multiplier =
        body.number("dry_multiplier", "a number from 0 to 100", |m| (0.0..=100.0).contains(&m))?;
    let mut dry = Dry::new(multiplier.unwrap_or(0.0));
    if let Some(base) =
        body.number("dry_base", "a number from 1 to 100", |b| (1.0..=100.0).contains(&b))?
    {
        dry = dry.with_base(base);
    }
    if let Some(tokens) = body.count("dry_allowed_length", 1)? {
        dry = dry.with_allowed_length(tokens);
    }
    let field = "dry_sequence_breakers";
    let breakers = match body.texts(field)? {
        Some(texts) => {
            let token = |text: &String| {
                token(text, tokenizer).ok_or_else(|| {
                    let text = shown(&text.as_str().into());
                    ApiError::field(
                        field,
                        "texts of one token each",
                        &format!("{text}, which is none"),
                    )
                })
            };
            texts.iter().map(token).collect::<Result<Vec<_>, _>>()?
        }
        None => BREAKERS.iter().filter_map(|text| token(text, tokenizer)).collect(),
    };
    Ok((dry.multiplier > 0.0).then(|| dry.with_breakers(breakers)))
}

/// The token that a text is when it comes after other text, if it is one. At the beginning of a text SentencePiece
/// would add a space.
fn token(text: &str, tokenizer: &Tokenizer) -> Option<TokenId> {
    let before = tokenizer.encode_rendered("a").ok()?;
    let after = tokenizer.encode_rendered(&format!("a{text}")).ok()?;
    match after.strip_prefix(&before[..])? {
        [token] => Some(*token),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use esamp::llama::Tokenizer;
    use esamp_programs::model_source::{Cache, ModelSource};
    use esamp_testkit::golden;
    use serde_json::{Value, json};

    use super::*;

    fn read(fields: Value, tokenizer: &Tokenizer) -> Option<Dry> {
        let mut body = Fields::new("", fields).unwrap();
        let dry = dry(&mut body, tokenizer).unwrap();
        body.end().unwrap();
        dry
    }

    #[test]
    fn breakers_are_the_tokens_of_their_texts() {
        let smollm2 = ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap();
        let smollm2 = Tokenizer::from_gguf(smollm2).unwrap();
        let dry = read(json!({"dry_multiplier": 0.5}), &smollm2).unwrap();
        let texts = BREAKERS.map(|text| smollm2.encode_rendered(text).unwrap()[0]);
        assert_eq!(dry, Dry::new(0.5).with_breakers(texts));
        let pieces = Tokenizer::from_gguf(golden::path("tokenizer/sentencepiece.gguf")).unwrap();
        let fields = json!({"dry_multiplier": 1, "dry_sequence_breakers": ["\n"], "dry_base": 2,
                            "dry_allowed_length": 3});
        let newline = pieces.token_id("<0x0A>").unwrap();
        let expected = Dry::new(1.0).with_base(2.0).with_allowed_length(3);
        assert_eq!(read(fields, &pieces), Some(expected.with_breakers([newline])));
        let none = read(json!({"dry_multiplier": 1, "dry_sequence_breakers": []}), &smollm2);
        assert_eq!(none, Some(Dry::new(1.0)));
        assert_eq!(read(json!({"dry_multiplier": 0, "dry_base": 2}), &smollm2), None);
    }
}
