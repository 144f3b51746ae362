// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Tables of TOML by paths of keys.

use toml::{Table, Value};

/// Returns the value at a path.
pub(crate) fn at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = table.get(*first)?;
    match rest {
        [] => Some(value),
        rest => at(value.as_table()?, rest),
    }
}

/// Returns the texts in the array at a path; none, if there is no array.
pub(crate) fn texts(table: &Table, path: &[&str]) -> Vec<String> {
    let values = at(table, path).and_then(Value::as_array);
    let texts = values.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// Puts a value at a path.
pub(crate) fn insert(table: &mut Table, path: &[&str], value: Value) {
    let tables = path.iter().rev();
    let nested = tables.fold(value, |value, key| {
        Value::Table(Table::from_iter([((*key).to_owned(), value)]))
    });
    if let Value::Table(nested) = nested {
        merge(table, nested);
    }
}

/// Removes the value at a path, and the tables that are empty then.
pub(crate) fn remove(table: &mut Table, path: &[&str]) {
    match path {
        [] => {}
        [key] => drop(table.remove(*key)),
        [key, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(*key) {
                remove(inner, rest);
                if inner.is_empty() {
                    table.remove(*key);
                }
            }
        }
    }
}

/// Adds the values of another table that are not there.
pub(crate) fn merge(table: &mut Table, other: Table) {
    for (key, value) in other {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (Some(_), _) => {}
            (None, value) => drop(table.insert(key, value)),
        }
    }
}

/// Returns the path of a value that only one of two tables has, or that differs.
pub(crate) fn difference(left: &Table, right: &Table) -> Option<String> {
    let keys = left.keys().chain(right.keys());
    keys.filter(|key| left.get(*key) != right.get(*key))
        .map(|key| match (left.get(key), right.get(key)) {
            (Some(Value::Table(left)), Some(Value::Table(right))) => {
                let rest = difference(left, right).unwrap_or_default();
                format!("{key:?}.{rest}")
            }
            _ => format!("{key:?}"),
        })
        .next()
}

/// Returns what a value states: without empty texts, zeros and the like, which are the defaults.
pub(crate) fn stated(value: &Value) -> Option<Value> {
    match value {
        Value::Table(table) => {
            let stated = table
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), stated(value)?)));
            let stated: Table = stated.collect();
            (!stated.is_empty()).then_some(Value::Table(stated))
        }
        Value::String(text) if text.is_empty() => None,
        Value::Array(values) if values.is_empty() => None,
        Value::Integer(0) | Value::Boolean(false) => None,
        value => Some(value.clone()),
    }
}
