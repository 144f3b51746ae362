// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Links from one page of a list to the next (RFC 8288).

use reqwest::header::{HeaderMap, LINK};

/// Returns the address of the first link to a next page.
pub(crate) fn next(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(LINK).into_iter();
    values.find_map(|value| {
        let mut rest = value.to_str().ok()?;
        while let Some((_, link)) = rest.split_once('<') {
            let (address, parameters) = link.split_once('>')?;
            let end = end(parameters);
            if is_next(&parameters[..end]) {
                return Some(address.trim().to_owned());
            }
            rest = &parameters[end..];
        }
        None
    })
}

/// Returns where the parameters of a link end: at a comma outside of quotes.
fn end(parameters: &str) -> usize {
    let mut is_quoted = false;
    let mut characters = parameters.char_indices();
    let comma = characters.find(|(_, character)| {
        is_quoted ^= *character == '"';
        *character == ',' && !is_quoted
    });
    comma.map_or(parameters.len(), |(place, _)| place)
}

/// Returns whether the parameters of a link state the relation `next`, among others.
fn is_next(parameters: &str) -> bool {
    parameters.split(';').any(|parameter| {
        let Some((name, value)) = parameter.split_once('=') else {
            return false;
        };
        let mut relations = value.trim().trim_matches('"').split_whitespace();
        name.trim().eq_ignore_ascii_case("rel")
            && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found() {
        for (values, expected) in [
            (
                &[r#"</v2/a/referrers/x?n=1>; rel="next""#][..],
                Some("/v2/a/referrers/x?n=1"),
            ),
            (&["<b>;rel=next"], Some("b")),
            (
                &[r#"<a>; rel="prev", <b,c>; title="x, <y>; rel=next"; REL="last Next""#],
                Some("b,c"),
            ),
            (&["<a>; rel=prev", "<b>; rel=next"], Some("b")),
            (&["<a>; rel=prev"], None),
            (&["<a>", "a; rel=next", "<a; rel=next", ""], None),
            (&[], None),
        ] {
            let values = values.iter().map(|value| (LINK, value.parse().unwrap()));
            let mut headers = HeaderMap::new();
            values.for_each(|(name, value)| {
                headers.append(name, value);
            });
            assert_eq!(next(&headers).as_deref(), expected, "{headers:?}");
        }
    }
}
