//! The names that a server may be reached by.
//!
//! A web page of another site can let its own name point to 127.0.0.1 (DNS rebinding). Its browser then takes this
//! server for that site, and sends it the page's requests, with the page's name as their host.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::Next,
    response::Response,
};

use crate::{app::App, error::ApiError, fields::cut};

/// The hosts that requests may name; all, if `None`.
#[derive(Clone, Debug)]
pub struct Hosts(Option<Vec<String>>);

impl Hosts {
    /// The hosts of a server with this address: on a loopback address `localhost`, loopback addresses and the names
    /// given; on others the names given, or all hosts without any.
    pub fn of(address: SocketAddr, names: &[String]) -> Self {
        let mut allowed = names.to_vec();
        if address.ip().is_loopback() {
            allowed.push("localhost".to_owned());
        }
        Self((!allowed.is_empty()).then_some(allowed))
    }

    /// Checks the host that a request names, with any port. A request that names none is not from a browser.
    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(allowed) = &self.0 else {
            return Ok(());
        };
        for host in headers.get_all(header::HOST) {
            let host = host.to_str().unwrap_or_default();
            if !host.parse().is_ok_and(|host: Authority| is_allowed(allowed, host.host())) {
                let message = format!(
                    "Host: expected a name of this server, see --allowed-host, got {:?}",
                    cut(host)
                );
                let error = ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message);
                return Err(error.with_param("Host"));
            }
        }
        Ok(())
    }
}

fn is_allowed(allowed: &[String], host: &str) -> bool {
    // No name stands for an address.
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    address.is_some_and(|address| address.is_loopback())
        && allowed.iter().any(|name| name == "localhost")
        || allowed.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// Refuses requests to other hosts.
pub(crate) async fn check_host(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    app.hosts.check(request.headers())?;
    Ok(next.run(request).await)
}

/// Reads a name from the command line.
pub(crate) fn host_name(text: &str) -> Result<String, String> {
    match text.parse::<Authority>() {
        Ok(host) if host.host() == text => Ok(text.to_owned()),
        _ => Err("expected a host without port, such as models.example.org".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(hosts: &Hosts, host: &str) -> u16 {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        hosts.check(&headers).map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn on_a_loopback_address_a_name_must_be_local_or_given() {
        let given = ["models.example.org".to_owned()];
        for address in ["127.0.0.1:8000", "[::1]:8000"] {
            let hosts = Hosts::of(address.parse().unwrap(), &given);
            for host in [
                "localhost",
                "LocalHost:9",
                "127.0.0.1:8000",
                "127.0.0.2",
                "[::1]:8000",
                "models.example.org:1",
            ] {
                assert_eq!(status(&hosts, host), 200, "{host}");
            }
            for host in [
                "evil.example",
                "localhost.evil.example",
                "127.0.0.1.evil.example:8000",
                "models.example.org.evil.example",
                "192.168.0.1",
                "",
                "a b",
                "localhost/",
            ] {
                assert_eq!(status(&hosts, host), 403, "{host}");
            }
            assert!(hosts.check(&HeaderMap::new()).is_ok());
        }
    }

    #[test]
    fn two_hosts_must_both_be_allowed() {
        let hosts = Hosts::of("127.0.0.1:1".parse().unwrap(), &[]);
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, "localhost".parse().unwrap());
        headers.append(header::HOST, "evil.example".parse().unwrap());
        assert!(hosts.check(&headers).is_err());
    }

    #[test]
    fn on_other_addresses_only_given_names_count() {
        let address = "0.0.0.0:8000".parse().unwrap();
        assert_eq!(status(&Hosts::of(address, &[]), "evil.example"), 200);
        let hosts = Hosts::of(address, &["models.example.org".to_owned()]);
        assert_eq!(status(&hosts, "models.example.org"), 200);
        assert_eq!(status(&hosts, "localhost"), 403);
        assert_eq!(status(&hosts, "127.0.0.1"), 403);
    }

    #[test]
    fn names_have_no_port() {
        assert_eq!(host_name("a.example"), Ok("a.example".to_owned()));
        assert_eq!(host_name("[::1]"), Ok("[::1]".to_owned()));
        for wrong in ["a.example:80", "", "a b", "http://a.example", "me@a.example"] {
            assert!(host_name(wrong).is_err(), "{wrong}");
        }
    }
}
