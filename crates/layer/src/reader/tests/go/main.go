// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

// Answers each line of its input, a tar stream in hexadecimal, with what archive/tar and the rules of
// containerd for names make of it. See ../go.rs.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
)

var refused = errors.New("containerd refuses it")

func sum(data []byte) string {
	sum := fnv.New64a()
	sum.Write(data)
	return fmt.Sprintf("%016x", sum.Sum64())
}

func shown(text string) string {
	if len(text) > 100 {
		return "#" + sum([]byte(text))
	}
	return url.QueryEscape(text)
}

func isTooLong(name string) bool { return len(name) > 255 }

func entry(reader *tar.Reader, h *tar.Header) (string, error) {
	where := strings.TrimPrefix(path.Join("/", h.Name), "/")
	parents, base := path.Split(where)
	hidden, isHiding := strings.CutPrefix(base, ".wh.")
	switch {
	case where == "" && h.Typeflag != tar.TypeDir:
		return "", nil
	case slices.ContainsFunc(strings.Split(parents, "/"), isTooLong), isTooLong(hidden),
		isHiding && slices.Contains([]string{"", ".", ".."}, hidden):
		return "", refused
	case h.Typeflag == tar.TypeXGlobalHeader:
		return "g " + shown(where), nil
	case isHiding:
		return "w " + shown(where), nil
	}
	detail := "-"
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		detail = fmt.Sprint(h.Size)
		if h.Size <= 1<<22 {
			data, err := io.ReadAll(reader)
			if err != nil {
				return "", err
			}
			detail += "." + sum(data)
		}
	case tar.TypeSymlink:
		detail = shown(h.Linkname)
	case tar.TypeLink:
		detail = shown(strings.TrimPrefix(path.Join("/", h.Linkname), "/"))
	case tar.TypeChar, tar.TypeBlock:
		detail = fmt.Sprint(h.Devmajor, ".", h.Devminor)
	case tar.TypeDir, tar.TypeFifo:
	default:
		return "", refused
	}
	if detail == "" {
		return "", refused
	}
	attributes := []string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && name == "" {
			return "", refused
		} else if ok {
			attributes = append(attributes, shown(name)+"="+shown(value))
		}
	}
	slices.Sort(attributes)
	kind := map[byte]string{tar.TypeCont: "0", tar.TypeGNUSparse: "0"}[h.Typeflag]
	return fmt.Sprintf("%s %s %o %d %d %d.%d %s %s", cmp.Or(kind, string(h.Typeflag)), shown(where),
		h.Mode&07777, h.Uid, h.Gid, h.ModTime.Unix(), h.ModTime.Nanosecond(), detail, strings.Join(attributes, ",")), nil
}

func answer(stream []byte) string {
	reader, entries := tar.NewReader(bytes.NewBuffer(stream)), []string{}
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return strings.Join(entries, ";")
		}
		text := ""
		if err == nil {
			text, err = entry(reader, header)
		}
		if err != nil {
			return "error"
		}
		if text != "" {
			entries = append(entries, text)
		}
	}
}

func main() {
	for input := bufio.NewReaderSize(os.Stdin, 1<<20); ; {
		line, err := input.ReadString('\n')
		if err != nil {
			return
		}
		stream, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			panic(err)
		}
		fmt.Println(answer(stream))
	}
}
