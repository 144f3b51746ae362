// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use super::*;

fn parsed(text: &str) -> Result<Vec<Endpoint>> {
    parse(text, Path::new("/certs"), "a.b")
}

fn roots(text: &str) -> Vec<String> {
    let endpoints = parsed(text).unwrap();
    endpoints
        .iter()
        .map(|endpoint| endpoint.root.to_string())
        .collect()
}

#[test]
fn hosts_are_in_the_order_of_the_file_and_the_server_is_last() {
    let text = r#"
        server = "https://up.stream"
        unknown = 1
        [host."https://z.mirror"]
        capabilities = ["pull", "resolve"]
        [host."https://push.only"]
        capabilities = ["push"]
        [host."a.mirror:444/sub/"]
        [host."https://c.mirror/v2/proxy"]
        override_path = true
        [host."http://d.mirror:5000/v2"]
    "#;
    assert_eq!(
        roots(text),
        [
            "https://z.mirror/v2",
            "https://push.only/v2",
            "https://a.mirror:444/sub/v2",
            "https://c.mirror/v2/proxy",
            "http://d.mirror:5000/v2",
            "https://up.stream/v2",
        ]
    );
}

#[test]
fn a_mirror_is_pushed_to_only_if_that_is_listed() {
    let text = r#"
        server = "https://up.stream"
        [host."https://listed"]
        capabilities = ["Push"]
        [host."https://pull.only"]
        capabilities = ["pull"]
        [host."https://all"]
        [host."http://a.b"]
        [host."https://nothing"]
        capabilities = ["referrers"]
    "#;
    let endpoints = parsed(text).unwrap();
    let may = |may: fn(Capabilities) -> bool| {
        let endpoints = endpoints.iter().filter(|endpoint| may(endpoint.may));
        let hosts = endpoints.filter_map(|endpoint| endpoint.root.host_str());
        hosts.collect::<Vec<_>>()
    };
    assert_eq!(may(|may| may.push), ["listed", "a.b", "up.stream"]);
    assert_eq!(
        may(|may| may.pull),
        ["pull.only", "all", "a.b", "up.stream"]
    );
    assert_eq!(may(|may| may.resolve), ["all", "a.b", "up.stream"]);
    assert_eq!(endpoints.len(), 5);
}

#[test]
fn without_a_server_the_registry_is_last() {
    assert_eq!(
        roots(r#"[host."https://m"]"#),
        ["https://m/v2", "https://a.b/v2"]
    );
    assert_eq!(roots(""), ["https://a.b/v2"]);
    let hub = parse("", Path::new("/"), "docker.io").unwrap();
    assert_eq!(hub[0].root.as_str(), "https://registry-1.docker.io/v2");
}

#[test]
fn a_registry_on_this_machine_may_be_plain() {
    for (host, root, may_be_plain, skip_verify) in [
        (
            "localhost:5000",
            "https://localhost:5000/v2",
            true,
            Some(true),
        ),
        ("127.0.0.1:80", "http://127.0.0.1/v2", false, None),
        ("localhost", "https://localhost/v2", false, Some(true)),
        ("a.b:5000", "https://a.b:5000/v2", false, None),
    ] {
        let endpoint = default_endpoint(host, TlsFiles::default()).unwrap();
        assert_eq!(endpoint.root.as_str(), root);
        let told = (endpoint.may_be_plain, endpoint.tls.skip_verify);
        assert_eq!(told, (may_be_plain, skip_verify), "{host}");
    }
}

#[test]
fn files_and_headers_have_several_forms() {
    let text = r#"
        ca = "root.crt"
        [host."https://m"]
        ca = ["a.crt", "/abs/b.crt"]
        client = [["c.cert", "c.key"], ["d.pem", ""]]
        skip_verify = false
        dial_timeout = "1m1.5s"
        [host."https://m".header]
        x-one = "1"
        x-two = ["2", "3"]
        [host."https://n"]
        client = ["e.pem", "f.pem"]
        [host."https://o"]
        client = "g.pem"
    "#;
    let endpoints = parsed(text).unwrap();
    let path = |name: &str| Path::new("/certs").join(name);
    let tls = &endpoints[0].tls;
    assert_eq!(tls.ca, [path("a.crt"), "/abs/b.crt".into()]);
    assert_eq!(
        tls.client,
        [(path("c.cert"), Some(path("c.key"))), (path("d.pem"), None)]
    );
    assert_eq!(tls.skip_verify, Some(false));
    assert_eq!(
        endpoints[0].dial_timeout,
        Some(Duration::from_millis(61_500))
    );
    let two: Vec<_> = endpoints[0].headers.get_all("X-Two").iter().collect();
    assert_eq!(two, ["2", "3"]);
    assert_eq!(
        endpoints[1].tls.client,
        [(path("e.pem"), None), (path("f.pem"), None)]
    );
    assert_eq!(endpoints[2].tls.client, [(path("g.pem"), None)]);
    assert_eq!(endpoints[3].tls.ca, [path("root.crt")]);
}

#[test]
fn errors_name_the_key() {
    for (text, key) in [
        ("server = 1", "server"),
        ("server = \"ftp://x\"", "server"),
        ("server = ", "the file"),
        ("host = 1", "host"),
        ("[host]\nx = 1", "host.\"x\""),
        ("[host.\"https://x y\"]", "host.\"https://x y\""),
        ("[host.\"https://user:secret@x\"]\nca = 1", "host"),
        ("[host.\"x\"]\nca = 1", "host.\"x\".ca"),
        ("[host.\"x\"]\nclient = [[\"a\"]]", "host.\"x\".client"),
        (
            "[host.\"x\"]\ncapabilities = [\"fly\"]",
            "host.\"x\".capabilities",
        ),
        (
            "[host.\"x\"]\nskip_verify = \"yes\"",
            "host.\"x\".skip_verify",
        ),
        (
            "[host.\"x\"]\ndial_timeout = \"3 years\"",
            "host.\"x\".dial_timeout",
        ),
        ("[host.\"x\".header]\na = \"b\\nc\"", "host.\"x\".header.a"),
    ] {
        assert_eq!(parsed(text).unwrap_err().key, key, "{text}");
    }
}
