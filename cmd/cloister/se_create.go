// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/progress"
	"github.com/cloister-cc/cloister/internal/version"
	"github.com/cloister-cc/cloister/se"
	"github.com/cloister-cc/cloister/se/hostkey"
)

const seCreateExample = `  # the guest of a folder that 'cloister build' wrote, for one machine
  cloister se create --guest guest/ -k HKD-8561-0001.crt -C ibm-z-host-key-signing-gen2.crt -C DigiCertCA.crt \
      --crl ibm-z-host-key-gen2.crl --crl DigiCertRoot.crl --crl DigiCertCA.crl

  # any kernel, initramfs and command line
  cloister se create -i vmlinuz -r initrd.img -p parmfile -k HKD-8561-0001.crt -C signing.crt -C ca.crt --crl all.crl -o se.img`

// seCreate holds the flags of "cloister se create".
type seCreate struct {
	documents, certs, crls            []string
	root                              string
	noVerify                          bool
	guest, kernel, ramdisk, parmfile  string
	output, bootloader                string
	headerKey, imageKey, cck          string
	dump, cckUpdate, extension, clear bool
	noPCKMO, hmac, backup             bool
	skipCheck, overwrite, asJSON      bool
}

// newSECreateCommand returns "cloister se create".
func newSECreateCommand() *cobra.Command {
	var c seCreate
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Seal a guest for chosen IBM Z machines",
		Long: "create writes an image of IBM Secure Execution that only the machines of the given host key documents can open, and\n" +
			"IMAGE.json, which says what went into it. The documents are verified by IBM's signing key, its chain and revocation\n" +
			"lists, all of which have to be given: nothing is fetched. Keys are random unless given, and not kept.\n\n" +
			"Seal on a machine that you trust: whoever sees the inputs needs no key.",
		Example: seCreateExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	f := cmd.Flags()
	f.StringArrayVarP(&c.documents, "host-key-document", "k", nil, "host key document of a machine (may be repeated, at most 95)")
	f.StringArrayVarP(&c.certs, "cert", "C", nil, "IBM's signing key or an intermediate certificate (may be repeated)")
	f.StringArrayVar(&c.crls, "crl", nil, "revocation list of root, intermediate or signing key (may be repeated)")
	f.StringVar(&c.root, "root-ca", "", "trusted root certificates (default: the system's)")
	f.BoolVar(&c.noVerify, "no-verify", false, "take the host key documents as they are: whoever made one up can open the image")
	f.StringVar(&c.guest, "guest", "", "folder that 'cloister build' wrote: its kernel, initramfs and command line")
	f.StringVarP(&c.kernel, "kernel", "i", "", "raw s390x kernel image")
	f.StringVar(&c.kernel, "image", "", "the same as --kernel")
	f.StringVarP(&c.ramdisk, "ramdisk", "r", "", "initramfs")
	f.StringVarP(&c.parmfile, "parmfile", "p", "", "file with the kernel command line")
	f.StringVarP(&c.output, "output", "o", "", "file to write (default with --guest: se.img in that folder)")
	f.StringVar(&c.bootloader, "bootloader-dir", "", "folder with stage3a.bin and stage3b_reloc.bin (default: where s390-tools has them)")
	f.StringVar(&c.headerKey, "hdr-key", "", "file with the 32 bytes of the header key (default: random)")
	f.StringVar(&c.imageKey, "image-key", "", "file with the 64 bytes of the image key (default: random)")
	f.StringVar(&c.cck, "cck", "", "file with the 32 bytes of the customer communication key (default: random)")
	f.BoolVar(&c.dump, "enable-dump", false, "let the host take dumps, which the CCK decrypts (needs --cck)")
	f.BoolVar(&c.cckUpdate, "enable-cck-update", false, "let an add-secret request replace the CCK")
	f.BoolVar(&c.extension, "enable-cck-extension-secret", false, "demand add-secret requests that prove knowledge of the CCK (needs --cck)")
	f.BoolVar(&c.clear, "disable-image-encryption", false, "leave the components in the clear: integrity without confidentiality")
	f.BoolVar(&c.noPCKMO, "disable-pckmo", false, "no PCKMO instruction for DEA, AES and ECC keys")
	f.BoolVar(&c.hmac, "enable-pckmo-hmac", false, "PCKMO instruction for HMAC keys")
	f.BoolVar(&c.backup, "enable-backup-keys", false, "the documents may be of backup host keys")
	f.BoolVar(&c.skipCheck, "no-component-check", false, "take a kernel that does not look like one")
	f.BoolVar(&c.overwrite, "overwrite", false, "replace an output that is there")
	f.BoolVar(&c.asJSON, "json", false, "print the manifest on standard output")
	cobra.CheckErr(f.MarkHidden("image"))
	return cmd
}

// check finds mistakes on the command line.
func (c *seCreate) check(cmd *cobra.Command) error {
	usage := func(text string) error { return &usageError{cmd: cmd.CommandPath(), err: errors.New(text)} }
	if err := requireFlags(cmd, "host-key-document"); err != nil {
		return err
	}
	switch {
	case c.noVerify && len(c.certs)+len(c.crls) > 0:
		return usage("--no-verify and --cert or --crl exclude each other")
	case !c.noVerify && len(c.certs) == 0:
		return usage("give --cert with IBM's signing key and the intermediate certificates, by which the documents are verified")
	case c.guest != "" && c.kernel+c.ramdisk+c.parmfile != "":
		return usage("--guest names kernel, initramfs and command line already")
	case c.guest == "" && c.kernel == "":
		return usage("give --guest or --kernel")
	case c.guest == "" && c.output == "":
		return usage("not given: --output")
	case (c.dump || c.extension) && c.cck == "":
		return usage("--enable-dump and --enable-cck-extension-secret need --cck: a random CCK is not kept")
	}
	return nil
}

func (c *seCreate) run(cmd *cobra.Command) error {
	if err := c.check(cmd); err != nil {
		return err
	}
	m := &sealManifest{Format: manifestFormat, Version: manifestVersion, Builder: version.String()}
	in, err := c.inputs()
	if err != nil {
		return err
	}
	defer in.close()
	documents, err := readDocuments(c.documents, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if err := c.verify(cmd, documents, m); err != nil {
		return err
	}
	o, err := c.options(cmd, documents, m)
	if err != nil {
		return err
	}
	defer o.HeaderKey.Wipe()
	defer o.ImageKey.Wipe()
	defer o.CCK.Wipe()
	in.fill(o)
	task := progress.Start(cmd.ErrOrStderr(), "seal "+filepath.Base(c.output), in.size())
	o.Progress = func(done int64) { task.Set(done, 0) }
	defer task.Done()
	if err := c.seal(cmd.Context(), o, in, m); err != nil {
		return err
	}
	if c.asJSON {
		return printJSON(cmd.OutOrStdout(), m)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", c.output)
	return err
}

// sealInputs are the open inputs of an image, hashed as they are read.
type sealInputs struct {
	guest       *guestimage.Guest
	kernel      *hashedFile
	ramdisk     *hashedFile
	commandLine []byte
}

// hashedFile is a file that is hashed as it is read.
type hashedFile struct {
	*os.File
	sum hash.Hash
}

// Read implements io.Reader.
func (h *hashedFile) Read(p []byte) (int, error) {
	n, err := h.File.Read(p)
	h.sum.Write(p[:n])
	return n, err
}

func openHashed(path string) (*hashedFile, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	return &hashedFile{f, sha256.New()}, nil
}

func (i *sealInputs) close() {
	for _, f := range []*hashedFile{i.kernel, i.ramdisk} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (i *sealInputs) fill(o *se.CreateOptions) {
	o.Kernel, o.CommandLine = i.kernel, i.commandLine
	if i.ramdisk != nil {
		o.Ramdisk = i.ramdisk
	}
}

// size is the sum of the inputs in bytes, 0 if one does not say.
func (i *sealInputs) size() int64 {
	var total int64
	for _, f := range []*hashedFile{i.kernel, i.ramdisk} {
		if f != nil {
			total += f.info().Size
		}
	}
	return total
}

// maxParmfile bounds a file with a command line, in bytes.
const maxParmfile = 64 << 10

// inputs opens what is to be sealed.
func (c *seCreate) inputs() (_ *sealInputs, err error) {
	in := &sealInputs{}
	defer func() {
		if err != nil {
			in.close()
		}
	}()
	kernel, ramdisk := c.kernel, c.ramdisk
	if c.guest != "" {
		if in.guest, err = guestimage.Load(c.guest); err != nil {
			return nil, err
		}
		if in.guest.Arch != initramfs.ArchS390x {
			return nil, fmt.Errorf("%s is a guest for %s: Secure Execution is a feature of s390x", c.guest, in.guest.Arch)
		}
		kernel, ramdisk = filepath.Join(c.guest, in.guest.Files.Kernel.Name), filepath.Join(c.guest, in.guest.Files.Initramfs.Name)
		in.commandLine = []byte(in.guest.CommandLine)
		if c.output == "" {
			c.output = filepath.Join(c.guest, guestimage.SealedFile)
		}
	}
	if in.kernel, err = openHashed(kernel); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if ramdisk != "" {
		if in.ramdisk, err = openHashed(ramdisk); err != nil {
			return nil, fmt.Errorf("initramfs: %w", err)
		}
	}
	if c.parmfile != "" {
		data, err := readLimited(c.parmfile, maxParmfile)
		if err != nil {
			return nil, fmt.Errorf("command line: %w", err)
		}
		in.commandLine = data
	}
	return in, nil
}

// verify verifies the documents, or says loudly that it does not.
func (c *seCreate) verify(cmd *cobra.Command, documents []document, m *sealManifest) error {
	for _, d := range documents {
		m.HostKeys = append(m.HostKeys, manifestHostKey{
			Document: filepath.Base(d.path), Hash: hex.EncodeToString(d.hash[:]), Serial: d.Certificate.SerialNumber.Text(16), Verified: !c.noVerify,
		})
	}
	if c.noVerify {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "WARNING: the host key documents are NOT VERIFIED (--no-verify): if one of them was made up, whoever did it can\n"+
			"WARNING: read everything in this image, its keys included. Never do this for a workload that matters.\n")
		m.Warnings = append(m.Warnings, "the host key documents were not verified (--no-verify)")
		return nil
	}
	o := hostkey.VerifierOptions{}
	for _, l := range []struct {
		to    *[][]byte
		paths []string
	}{{&o.Certificates, c.certs}, {&o.CRLs, c.crls}, {&o.Roots, nonEmpty(c.root)}} {
		for _, path := range l.paths {
			data, err := readLimited(path, hostkey.MaxFileSize)
			if err != nil {
				return fmt.Errorf("verify host key documents: %w", err)
			}
			*l.to = append(*l.to, data)
		}
	}
	v, err := hostkey.NewVerifier(o)
	if err != nil {
		return fmt.Errorf("verify host key documents: %w", err)
	}
	for _, d := range documents {
		if err := v.Verify(d.Document); err != nil {
			return fmt.Errorf("verify host key document %s: %w", d.path, err)
		}
	}
	m.SigningKey = v.SigningKey()
	return nil
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// options collects keys, flags and bootloader.
func (c *seCreate) options(cmd *cobra.Command, documents []document, m *sealManifest) (_ *se.CreateOptions, err error) {
	o := &se.CreateOptions{HostKeys: publicKeys(documents), SkipComponentCheck: c.skipCheck, PCF: se.DefaultPCF}
	if o.Bootloader, err = se.LoadBootloader(c.bootloader); err != nil {
		return nil, &bootloaderError{err}
	}
	if o.HeaderKey, err = readKeyFile("hdr-key", c.headerKey, se.HeaderKeySize); err != nil {
		return nil, err
	}
	if o.ImageKey, err = readKeyFile("image-key", c.imageKey, se.ImageKeySize); err != nil {
		return nil, err
	}
	if o.CCK, err = readKeyFile("cck", c.cck, se.CCKSize); err != nil {
		return nil, err
	}
	if c.noPCKMO {
		o.PCF = 0
	}
	for _, f := range []struct {
		on   bool
		to   *se.Flags
		flag se.Flags
		warn string
	}{
		{c.dump, &o.PCF, se.PCFAllowDump, "the host can take dumps, which whoever has the CCK can read (--enable-dump)"},
		{c.clear, &o.PCF, se.PCFNoComponentEncryption, "kernel, initramfs and command line are in the clear (--disable-image-encryption)"},
		{c.hmac, &o.PCF, se.PCFPCKMOHMAC, ""},
		{c.backup, &o.PCF, se.PCFBackupTarget, ""},
		{c.extension, &o.SCF, se.SCFExtensionSecretEnforced, ""},
		{c.cckUpdate, &o.SCF, se.SCFCCKUpdate, ""},
	} {
		if !f.on {
			continue
		}
		*f.to |= f.flag
		if f.warn != "" {
			m.Warnings = append(m.Warnings, f.warn)
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "WARNING: %s\n", f.warn)
		}
	}
	return o, nil
}

// bootloaderError says where the missing boot code comes from.
type bootloaderError struct{ err error }

func (e *bootloaderError) Error() string { return e.err.Error() }
func (e *bootloaderError) Unwrap() error { return e.err }

// Hint says what to do.
func (e *bootloaderError) Hint() string {
	if !errors.Is(e.err, se.ErrNoBootloader) {
		return ""
	}
	return "Debian has it in the package s390-tools of s390x, 2.36 or newer ('cloister setup --arch s390x --json' fetches it: bootloader); give its folder by --bootloader-dir"
}
