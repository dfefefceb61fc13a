// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/se"
)

// imageInfo is what info prints as JSON. Below "header", names are those of pvimg's output.
type imageInfo struct {
	Layout       string          `json:"layout"`
	Size         int64           `json:"size"`
	HeaderOffset int64           `json:"header_offset"`
	IPIBOffset   int64           `json:"ipib_offset,omitempty"`
	Components   []componentInfo `json:"components,omitempty"`
	Header       headerInfo      `json:"header"`
	// Verified says that the header was authenticated with a header key.
	Verified bool     `json:"verified"`
	PCFNames []string `json:"pcf_names"`
	SCFNames []string `json:"scf_names,omitempty"`
}

type componentInfo struct {
	Kind        se.Kind `json:"kind"`
	Address     string  `json:"address"`
	Size        uint64  `json:"size"`
	TweakPrefix string  `json:"tweak_prefix_hex"`
	Encrypted   bool    `json:"encrypted"`
}

type headerInfo struct {
	Magic       string     `json:"magic_hex"`
	Version     string     `json:"version"`
	Size        int        `json:"sehs"`
	IV          string     `json:"iv_hex"`
	Slots       int        `json:"nks"`
	Encrypted   int        `json:"sea"`
	Pages       uint64     `json:"nep"`
	PCF         string     `json:"pcf_hex"`
	CustomerKey string     `json:"cust_pub_key_hex"`
	PLD         string     `json:"pld_hex"`
	ALD         string     `json:"ald_hex"`
	TLD         string     `json:"tld_hex"`
	KeySlots    []slotInfo `json:"keyslots"`
	CCK         string     `json:"cck_hex,omitempty"`
	ImageKey    string     `json:"xts_hex,omitempty"`
	PSW         *pswInfo   `json:"psw,omitempty"`
	SCF         string     `json:"scf_hex,omitempty"`
	Tag         string     `json:"tag_hex"`
}

type slotInfo struct {
	HostKeyHash string `json:"phkh_hex"`
	WrappedKey  string `json:"wrpk_hex"`
	Tag         string `json:"kst_hex"`
}

type pswInfo struct {
	Mask    string `json:"mask_hex"`
	Address string `json:"addr_hex"`
}

// newSEInfoCommand returns "cloister se info".
func newSEInfoCommand() *cobra.Command {
	var headerKey string
	var showSecrets, asJSON bool
	cmd := &cobra.Command{
		Use:   "info IMAGE",
		Short: "Show what an image says of itself",
		Long: "info reads the header and the list of components of an image, or a header alone; the components are not read. With the\n" +
			"header key it authenticates the header; without it, everything shown is what the file says and can be made up.",
		Example: "  cloister se info se.img\n  cloister se info --hdr-key hdr.key --json se.img",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if showSecrets && headerKey == "" {
				return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--show-secrets needs --hdr-key")}
			}
			f, img, err := openImage(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			info := describeImage(img)
			if headerKey != "" {
				if err := info.open(img.Header, headerKey, showSecrets); err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), info)
			}
			return info.print(cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&headerKey, "hdr-key", "", "file with the 32 bytes of the header key")
	f.BoolVar(&showSecrets, "show-secrets", false, "show CCK and image key as well")
	f.BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func describeImage(i *se.Image) *imageInfo {
	h := i.Header
	info := &imageInfo{
		Layout: i.Layout, Size: i.Size, HeaderOffset: i.HeaderOffset, PCFNames: se.PCFNames(h.PCF),
		Header: headerInfo{
			Magic: hex.EncodeToString([]byte("IBMSecEx")), Version: "V1", Size: h.Size(), IV: hex.EncodeToString(h.IV[:]),
			Slots: len(h.Slots), Encrypted: len(h.Encrypted), Pages: h.Digests.Pages, PCF: fmt.Sprintf("%016x", uint64(h.PCF)),
			CustomerKey: hex.EncodeToString(h.CustomerKey[:]), PLD: hex.EncodeToString(h.Digests.PLD[:]),
			ALD: hex.EncodeToString(h.Digests.ALD[:]), TLD: hex.EncodeToString(h.Digests.TLD[:]), Tag: hex.EncodeToString(h.Tag[:]),
		},
	}
	for _, s := range h.Slots {
		info.Header.KeySlots = append(info.Header.KeySlots, slotInfo{
			hex.EncodeToString(s.HostKeyHash[:]), hex.EncodeToString(s.WrappedKey[:]), hex.EncodeToString(s.Tag[:]),
		})
	}
	if i.IPIB == nil {
		return info
	}
	info.IPIBOffset = i.IPIBOffset
	for _, c := range i.IPIB.Components {
		info.Components = append(info.Components, componentInfo{
			Kind: c.Kind(), Address: fmt.Sprintf("0x%x", c.Address), Size: c.Size, TweakPrefix: fmt.Sprintf("%016x", c.TweakPrefix),
			Encrypted: !h.PCF.Has(se.PCFNoComponentEncryption),
		})
	}
	return info
}

// open adds what the header key shows.
func (i *imageInfo) open(h *se.Header, keyFile string, showSecrets bool) error {
	key, err := readKeyFile("hdr-key", keyFile, se.HeaderKeySize)
	if err != nil {
		return err
	}
	defer key.Wipe()
	c, err := h.Open(key)
	if err != nil {
		return err
	}
	defer c.Wipe()
	i.Verified = true
	i.SCFNames = se.SCFNames(c.SCF)
	i.Header.SCF = fmt.Sprintf("%016x", uint64(c.SCF))
	i.Header.PSW = &pswInfo{fmt.Sprintf("%016x", c.PSWMask), fmt.Sprintf("%016x", c.PSWAddress)}
	if showSecrets {
		i.Header.CCK, i.Header.ImageKey = hex.EncodeToString(c.CCK.Bytes()), hex.EncodeToString(c.ImageKey.Bytes())
	}
	return nil
}

func (i *imageInfo) print(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, a ...any) {
		fmt.Fprintf(&b, "%-14s "+format+"\n", append([]any{name}, a...)...)
	}
	line("layout", "%s, %d bytes", i.Layout, i.Size)
	line("header", "%s at 0x%x, %d bytes, %s", i.Header.Version, i.HeaderOffset, i.Header.Size, map[bool]string{
		true: "authentic", false: "not authenticated (give --hdr-key)",
	}[i.Verified])
	line("flags (PCF)", "0x%s %s", i.Header.PCF, strings.Join(i.PCFNames, ", "))
	if i.Verified {
		line("flags (SCF)", "0x%s %s", i.Header.SCF, strings.Join(i.SCFNames, ", "))
		line("start", "mask 0x%s address 0x%s", i.Header.PSW.Mask, i.Header.PSW.Address)
	}
	line("pages", "%d", i.Header.Pages)
	line("PLD", "%s", i.Header.PLD)
	line("ALD", "%s", i.Header.ALD)
	line("TLD", "%s", i.Header.TLD)
	line("tag", "%s", i.Header.Tag)
	if i.Header.CCK != "" {
		line("CCK", "%s", i.Header.CCK)
		line("image key", "%s", i.Header.ImageKey)
	}
	for n, s := range i.Header.KeySlots {
		line(fmt.Sprintf("host key %d", n+1), "%s", s.HostKeyHash)
	}
	for _, c := range i.Components {
		line(c.Kind.String(), "%d bytes at %s, %s", c.Size, c.Address, map[bool]string{true: "encrypted", false: "in the clear"}[c.Encrypted])
	}
	_, err := io.WriteString(w, b.String())
	return err
}
