#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors

# Makes the certificates and signatures that the tests use: make.sh OPENSSL DIRECTORY. It needs OpenSSL 3.4 or later.
# Those beside this file were made by it; the keys are thrown away, but for those that tests sign with and are refused
# with. All certificates are valid in 2025, except "expired", "future" and "old-ca".
set -eu
OPTION=
openssl=$1
out=$(cd "$2" && pwd)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cd "$work"
from=20250101000000Z until=20260101000000Z

root=$(printf '0123456789abcdef%.0s' 1 2 3 4)
printf %s "$root" >root-hash

cat >config <<'END'
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
[unfit]
basicConstraints = critical, CA:true
keyUsage = critical, digitalSignature
[code]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = codeSigning
subjectKeyIdentifier = hash
[mail]
extendedKeyUsage = emailProtection
[plain]
subjectKeyIdentifier = hash
END

# NAME ISSUER EXTENSIONS [KEY-ALGORITHM FROM UNTIL]: a certificate; its own issuer if that is itself.
certificate() {
	name=$1 issuer=$2 extensions=$3
	"$openssl" genpkey -quiet -algorithm "${4:-RSA}" -out "$name.key" ${OPTION:+-pkeyopt "$OPTION"}
	if [ "$name" = "$issuer" ]; then
		set -- -key "$name.key" "${5:-$from}" "${6:-$until}"
	else
		set -- "-CA $issuer.pem -CAkey $issuer.key -key" "$name.key" "${5:-$from}" "${6:-$until}"
	fi
	# shellcheck disable=SC2086
	"$openssl" req -x509 -new -config config -extensions "$extensions" $1 "$2" -subj "/O=Example/CN=$name" \
		-not_before "$3" -not_after "$4" -out "$name.pem"
}

# NAME [OPTIONS]: a signature.
sign() {
	name=$1
	shift
	"$openssl" smime -sign -binary -in root-hash -outform der -out "$out/$name.p7s" "$@"
}

by() {
	echo "-signer $1.pem -inkey $1.key"
}

certificate ca ca ca
certificate middle ca ca
certificate foreign-ca foreign-ca ca
certificate old-ca old-ca ca RSA 20200101000000Z 20210101000000Z
certificate no-ca ca code
certificate unfit ca unfit
certificate signer ca code
certificate below-middle middle code
certificate below-old old-ca code
certificate below-no-ca no-ca code
certificate below-unfit unfit code
certificate mail ca mail
certificate no-purpose ca plain
certificate foreign foreign-ca code
certificate self self code
certificate publisher publisher code
certificate expired ca code RSA 20200101000000Z 20210101000000Z
certificate future ca code RSA 20300101000000Z 20310101000000Z
OPTION=rsa_keygen_bits:1024
certificate short ca code
OPTION=ec_paramgen_curve:P-256
certificate curve ca code EC
cp ca.pem middle.pem old-ca.pem foreign-ca.pem signer.pem self.pem expired.pem mail.pem publisher.pem publisher.key \
	curve.key root-hash "$out"
"$openssl" pkey -in publisher.key -traditional -out "$out/publisher-pkcs1.key"
"$openssl" pkey -in publisher.key -aes256 -passout pass:secret -out "$out/encrypted.key"
"$openssl" pkey -in publisher.key -traditional -aes256 -passout pass:secret -out "$out/encrypted-pkcs1.key"
"$openssl" pkey -in curve.key -traditional -out "$out/curve-sec1.key"

# shellcheck disable=SC2046
{
	sign good -noattr $(by signer)
	sign no-certificate -noattr -nocerts $(by signer)
	sign self -noattr -nocerts $(by self)
	sign chain -noattr -certfile middle.pem $(by below-middle)
	sign publisher -noattr $(by publisher)
	sign no-ca -noattr -certfile no-ca.pem $(by below-no-ca)
	sign unfit -noattr -certfile unfit.pem $(by below-unfit)
	for name in mail no-purpose foreign below-old expired future short curve; do
		sign $name -noattr $(by $name)
	done
	sign authority -noattr $(by ca)
	sign attributes $(by signer)
	sign sha384 -noattr -md sha384 $(by signer)
	sign two-signers -noattr -certfile middle.pem $(by signer) $(by below-middle)
	sign attached -noattr -nodetach $(by signer)
	"$openssl" cms -sign -binary -noattr -keyid -in root-hash -outform der -out "$out/key-id.p7s" $(by signer)
	"$openssl" cms -sign -binary -noattr -in root-hash -outform der -out "$out/pss.p7s" $(by signer) \
		-keyopt rsa_padding_mode:pss
	printf %s "$root" | tr 0 1 >root-hash
	sign other-root-hash -noattr $(by signer)
}
