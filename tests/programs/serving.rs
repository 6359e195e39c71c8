//! Servers and tools that read keys and certificates from a mount.

use std::time::Duration;

use crate::support::process::wait_for;
use crate::support::tree::{Tree, needs};

/// Makes a self-signed certificate for `$1` and its key in the mount.
const ISSUE: &str = r#"
issue() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
        -subj "/CN=$1" -keyout tls.key.new -out tls.crt.new 2>$BESIDE/said
    chmod 0600 tls.key.new; mv tls.key.new tls.key; mv tls.crt.new tls.crt
}
"#;

#[test]
fn openssl_makes_reads_signs_and_verifies_with_keys_in_the_mount() {
    needs(&["openssl"]);
    let tree = Tree::new();
    tree.bash(&format!(
        r#"{ISSUE}
        issue example.test
        test "$(stat -c %a tls.key)" = 600
        openssl pkey -in tls.key -check -noout | grep -q 'is valid'
        diff <(openssl pkey -in tls.key -pubout) <(openssl x509 -in tls.crt -pubkey -noout)
        echo message > message
        openssl dgst -sha256 -sign tls.key -out signature message
        openssl pkey -in tls.key -pubout -out public
        openssl dgst -sha256 -verify public -signature signature message | grep -qx 'Verified OK'
        openssl rand -out random 5000; test "$(stat -c %s random)" = 5000
        "#
    ));
    tree.ends_sound();
}

#[test]
fn nginx_serves_tls_with_a_key_from_the_mount_and_takes_a_new_one() {
    needs(&["nginx", "openssl"]);
    let tree = Tree::new();
    tree.bash(&format!(
        "{ISSUE}\nissue first.test\nmkdir www; echo 'a secret page' > www/index.html"
    ));
    tree.bash(
        r#"
        mkdir $BESIDE/tmp
        cat > $BESIDE/nginx.conf <<EOF
daemon off; pid $BESIDE/pid; error_log stderr; user root;
events { worker_connections 64; }
http {
    access_log off; sendfile on;
    client_body_temp_path $BESIDE/tmp/1; proxy_temp_path $BESIDE/tmp/2; fastcgi_temp_path $BESIDE/tmp/3;
    uwsgi_temp_path $BESIDE/tmp/4; scgi_temp_path $BESIDE/tmp/5;
    server {
        listen unix:$BESIDE/socket ssl;
        ssl_certificate $MOUNT/tls.crt; ssl_certificate_key $MOUNT/tls.key;
        root $MOUNT/www;
    }
}
EOF"#,
    );
    let server = tree.start(
        "env PATH=$PATH:/usr/sbin nginx -c $BESIDE/nginx.conf -p $BESIDE 2>$BESIDE/nginx.log",
    );
    let fetch = || {
        tree.bash(
            r#"
            printf 'GET / HTTP/1.0\r\n\r\n' | timeout 30 openssl s_client -quiet -ign_eof -unix $BESIDE/socket \
                -CAfile tls.crt -verify_return_error 2>&1 || true
            "#,
        )
    };
    wait_for("the first certificate", Duration::from_secs(60), || {
        let got = fetch();
        got.contains("first.test") && got.contains("a secret page")
    });
    tree.bash(&format!(
        "{ISSUE}\nissue second.test; echo 'another page' > www/index.html; kill -HUP $(cat $BESIDE/pid)"
    ));
    wait_for("the second certificate", Duration::from_secs(60), || {
        let got = fetch();
        got.contains("second.test") && got.contains("another page")
    });
    tree.bash("kill -QUIT $(cat $BESIDE/pid)");
    drop(server);
    tree.ends_sound();
}

#[test]
fn programs_run_from_a_mount_that_allows_it_and_not_from_another() {
    let tree = Tree::new();
    tree.bash(
        r#"
        cp /bin/true true; ./true; printf '#!/bin/sh\necho ran\n' > script; chmod 755 script
        test "$(./script)" = ran
        cp /bin/sleep sleep; ./sleep 600 & pid=$!
        for i in {1..600}; do grep -q sleep /proc/$pid/comm && break; sleep 0.1; done
        ! bash -c 'echo x >> sleep' 2>$BESIDE/said; grep -q 'Text file busy' $BESIDE/said
        rm sleep; cp /bin/sleep sleep; kill $pid; wait $pid || true
        exec 3>> true; ! ./true 2>$BESIDE/said; grep -q 'Text file busy' $BESIDE/said
        "#,
    );
    tree.ends_sound();
    let tree = Tree::with_options("allow_other");
    tree.bash(
        "cp /bin/true true; ! ./true 2>$BESIDE/said; grep -q 'Permission denied' $BESIDE/said",
    );
    tree.ends_sound();
}
