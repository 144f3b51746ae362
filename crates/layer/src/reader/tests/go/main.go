// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

// Answers each line of its input, a tar stream in hexadecimal, with what archive/tar and the rules of
// containerd for names make of it. See ../go.rs.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"io"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
)

// check ends in the answer "error" what is refused.
func check(isRight bool) {
	if !isRight {
		panic("refused")
	}
}

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

func entry(reader *tar.Reader, h *tar.Header) []string {
	where := strings.TrimPrefix(path.Join("/", h.Name), "/")
	if where == "" && h.Typeflag != tar.TypeDir {
		return nil
	}
	parents, base := path.Split(where)
	hidden, isHiding := strings.CutPrefix(base, ".wh.")
	for _, name := range append(strings.Split(parents, "/"), hidden) {
		check(len(name) <= 255)
	}
	check(!isHiding || !slices.Contains([]string{"", ".", ".."}, hidden))
	if h.Typeflag == tar.TypeXGlobalHeader {
		return []string{"g " + url.QueryEscape(where)}
	} else if isHiding {
		return []string{"w " + shown(where)}
	}
	kind, detail := h.Typeflag, "-"
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		kind, detail = tar.TypeReg, fmt.Sprint(h.Size)
		if h.Size <= 1<<22 {
			data, err := io.ReadAll(reader)
			check(err == nil)
			detail += "." + sum(data)
		}
	case tar.TypeSymlink:
		detail = shown(h.Linkname)
	case tar.TypeLink:
		detail = shown(strings.TrimPrefix(path.Join("/", h.Linkname), "/"))
	case tar.TypeChar, tar.TypeBlock:
		detail = fmt.Sprint(h.Devmajor, ".", h.Devminor)
	default:
		check(h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeFifo)
	}
	check(detail != "")
	attributes := []string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			check(name != "")
			attributes = append(attributes, shown(name)+"="+shown(value))
		}
	}
	slices.Sort(attributes)
	return []string{fmt.Sprintf("%c %s %o %d %d %d.%d %s %s", kind, shown(where), h.Mode&07777, h.Uid, h.Gid,
		h.ModTime.Unix(), h.ModTime.Nanosecond(), detail, strings.Join(attributes, ","))}
}

func answer(stream []byte) (text string) {
	defer func() {
		if recover() != nil {
			text = "error"
		}
	}()
	reader, entries := tar.NewReader(bytes.NewBuffer(stream)), []string{}
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return strings.Join(entries, ";")
		}
		check(err == nil)
		entries = append(entries, entry(reader, header)...)
	}
}

func main() {
	for input := bufio.NewReaderSize(os.Stdin, 1<<20); ; {
		line, err := input.ReadString('\n')
		if err != nil {
			return
		}
		stream, _ := hex.DecodeString(strings.TrimSpace(line))
		fmt.Println(answer(stream))
	}
}
