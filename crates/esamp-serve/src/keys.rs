//! API keys.

use std::{fs, path::Path};

use axum::http::{HeaderMap, StatusCode, header};
use esamp_programs::failure::Failure;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::ApiError;

/// A client: the number of its key, or 0 if there are no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(pub usize);

/// The keys that are accepted; everyone is accepted if there are none. Only their hashes are kept: those have one
/// length, so that the time of a comparison says nothing about a key.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// The environment variable with one more key.
    pub const VARIABLE: &str = "ESAMP_API_KEY";

    /// The keys of a file, one per line, and the one of the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, Failure> {
        let mut keys = Self::default();
        if let Some(path) = file {
            let place = format!("--api-key-file {}", path.display());
            let text = fs::read_to_string(path)
                .map_err(|error| Failure::usage(format!("{place}: {error}"), "check the path"))?;
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                keys.add(&place, line.trim())?;
            }
            // An empty file must not open the server to everyone.
            if keys.0.is_empty() {
                let error = format!("{place}: expected a key per line, got none");
                return Err(Failure::usage(error, "write a key into the file, or drop the flag"));
            }
        }
        if let Some(key) = std::env::var_os(Self::VARIABLE) {
            keys.add(Self::VARIABLE, &key.to_string_lossy())?;
        }
        Ok(keys)
    }

    fn add(&mut self, place: &str, key: &str) -> Result<(), Failure> {
        // What can be sent in a header.
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let error = format!("{place}: expected keys of visible ASCII characters, got others");
            return Err(Failure::usage(error, "choose a key without spaces, such as a UUID"));
        }
        self.0.push(Sha256::digest(key).into());
        Ok(())
    }

    /// Whether clients need a key.
    pub fn are_required(&self) -> bool {
        !self.0.is_empty()
    }

    /// The client that these headers are from.
    pub fn client(&self, headers: &HeaderMap) -> Result<Client, ApiError> {
        if !self.are_required() {
            return Ok(Client(0));
        }
        let refused = |message: &str| {
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
        };
        let Some(sent) = headers.get(header::AUTHORIZATION) else {
            return refused("Authorization: expected `Bearer KEY`, got no such header");
        };
        let Some((scheme, key)) = sent.to_str().ok().and_then(|sent| sent.split_once(' ')) else {
            return refused("Authorization: expected `Bearer KEY`, got something else");
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return refused("Authorization: expected the scheme Bearer, got another");
        }
        let hash: [u8; 32] = Sha256::digest(key.trim()).into();
        // Every key is compared, whichever it is.
        let mut found = None;
        for (number, known) in self.0.iter().enumerate() {
            if bool::from(known[..].ct_eq(&hash[..])) {
                found = Some(Client(number));
            }
        }
        found.map_or_else(
            || refused("Authorization: expected a key of this server, got another"),
            Ok,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn client(keys: &ApiKeys, sent: Option<&str>) -> Result<Client, u16> {
        let mut headers = HeaderMap::new();
        if let Some(sent) = sent {
            headers.insert(header::AUTHORIZATION, sent.parse().unwrap());
        }
        keys.client(&headers).map_err(|error| error.status.as_u16())
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_key_is_who_a_client_is() {
        let keys = file("first-key\n\n second-key \n");
        let keys = ApiKeys::load(Some(keys.path())).unwrap();
        assert_eq!(client(&keys, Some("Bearer first-key")), Ok(Client(0)));
        assert_eq!(client(&keys, Some("bearer second-key")), Ok(Client(1)));
        for wrong in
            [None, Some("Bearer first-ke"), Some("Bearer "), Some("Basic first-key"), Some("x")]
        {
            assert_eq!(client(&keys, wrong), Err(401), "{wrong:?}");
        }
        assert_eq!(client(&ApiKeys::default(), None), Ok(Client(0)));
    }

    #[test]
    fn a_file_without_a_key_does_not_open_the_server() {
        for text in ["", " \n\n", "a key\n", "schlüssel\n"] {
            assert!(ApiKeys::load(Some(file(text).path())).is_err(), "{text:?}");
        }
    }
}
