package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
)

// defaultFolder is host-local's.
const defaultFolder = "/var/lib/cni/networks"

// pool has the addresses of a network: host-local's allocators over its store, which has a file for each address
// that is taken, with the holder in it. The store reads all of them to find those of one holder, which is dear
// with a hundred pods in gVisor. So each holder also has symbolic links to its addresses, one for each set of
// ranges.
type pool struct {
	*disk.Store
	ipam   *allocator.IPAMConfig
	folder string
}

func open(c *config) (*pool, error) {
	parent := c.ipam.DataDir
	if parent == "" {
		parent = defaultFolder
	}
	store, err := disk.New(c.Name, parent)
	if err != nil {
		return nil, failed(types.ErrIOFailure, "the folder of the addresses cannot be opened", err.Error())
	}
	return &pool{store, c.ipam, filepath.Join(parent, c.Name)}, nil
}

func (p *pool) link(id, ifName, set string) string {
	return filepath.Join(p.folder, hostEnd(id, ifName)+"."+set)
}

// Reserve makes the link first: whenever this process is killed, no address stays that is not found.
func (p *pool) Reserve(id, ifName string, ip net.IP, set string) (bool, error) {
	link := p.link(id, ifName, set)
	err := os.Symlink(ip.String(), link)
	if os.IsExist(err) { // it leads to no address of the holder: it was left by a process that was killed
		err = errors.Join(os.Remove(link), os.Symlink(ip.String(), link))
	}
	if err != nil {
		return false, err
	}
	reserved, err := p.Store.Reserve(id, ifName, ip, set)
	if !reserved {
		err = errors.Join(err, os.Remove(link))
	}
	return reserved, err
}

// held calls a function for each link of a holder, with its address if the holder has it.
func (p *pool) held(id, ifName string, do func(link string, ip net.IP) error) error {
	for number := range p.ipam.Ranges {
		link := p.link(id, ifName, strconv.Itoa(number))
		name, err := os.Readlink(link)
		if os.IsNotExist(err) {
			continue
		} else if err != nil {
			return err
		}
		ip := net.ParseIP(name)
		if holder, err := p.holder(name); err != nil {
			return err
		} else if holder != id+disk.LineBreak+ifName {
			ip = nil
		}
		if err := do(link, ip); err != nil {
			return err
		}
	}
	return nil
}

// holder returns that of an address as host-local writes it; an empty text for a free address.
func (p *pool) holder(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(p.folder, name))
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	return strings.TrimSpace(string(text)), nil
}

// GetByID returns the addresses of a holder.
func (p *pool) GetByID(id, ifName string) (ips []net.IP) {
	_ = p.held(id, ifName, func(_ string, ip net.IP) error {
		if ip != nil {
			ips = append(ips, ip)
		}
		return nil
	})
	return ips
}

// ReleaseByID removes a holder's addresses and links; there may be none.
func (p *pool) ReleaseByID(id, ifName string) error {
	return p.held(id, ifName, func(link string, ip net.IP) error {
		if ip != nil {
			if err := os.Remove(filepath.Join(p.folder, ip.String())); err != nil {
				return err
			}
		}
		return os.Remove(link)
	})
}

func (p *pool) release(id, ifName string) error {
	if err := p.Lock(); err != nil {
		return err
	}
	defer p.Unlock()
	return p.ReleaseByID(id, ifName)
}

// single returns an address as a network of its own.
func single(ip net.IP) net.IPNet {
	if four := ip.To4(); four != nil {
		ip = four
	}
	return net.IPNet{IP: ip, Mask: net.CIDRMask(8*len(ip), 8*len(ip))}
}

// reserve takes one address of each set of ranges; none of them stays taken when one cannot be had.
func (p *pool) reserve(id, ifName string) (ips []*current.IPConfig, err error) {
	if held := p.GetByID(id, ifName); len(held) > 0 {
		return nil, failed(alreadyAttached, "the container is attached already", "it has "+held[0].String())
	}
	wanted := map[string]net.IP{}
	for _, ip := range p.ipam.IPArgs {
		wanted[ip.String()] = ip
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.release(id, ifName))
		}
	}()
	for number, set := range p.ipam.Ranges {
		var asked net.IP
		for text, ip := range wanted {
			if set.Contains(ip) {
				asked = ip
				delete(wanted, text)
				break
			}
		}
		made, err := allocator.NewIPAllocator(&set, p, number).Get(id, ifName, asked)
		if err != nil {
			return nil, failed(exhausted, "there is no address for the container", err.Error())
		}
		made.Address = single(made.Address.IP)
		ips = append(ips, made)
	}
	for text := range wanted {
		return nil, failed(exhausted, "an address that was asked for is in no range", text)
	}
	return ips, nil
}

// collect takes the addresses back from all but the valid ends, once what else they have is removed.
func (p *pool) collect(valid map[string]bool, remove func(hostName string) error) error {
	if err := p.Lock(); err != nil {
		return err
	}
	defer p.Unlock()
	entries, err := os.ReadDir(p.folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, _, _ := strings.Cut(entry.Name(), ".")
		if net.ParseIP(entry.Name()) != nil {
			holder, err := p.holder(entry.Name())
			if err != nil {
				return err
			}
			id, ifName, _ := strings.Cut(holder, disk.LineBreak)
			name = hostEnd(id, ifName)
		} else if !isHostEnd(name) {
			continue // the lock, or the address that was given last
		}
		if valid[name] {
			continue
		}
		if err := remove(name); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(p.folder, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// hasFree returns an error unless each set of ranges has an address that nobody holds.
func (p *pool) hasFree() error {
	entries, err := os.ReadDir(p.folder)
	if err != nil {
		return failed(unavailable, "the addresses cannot be read", err.Error())
	}
	taken := map[string]bool{}
	for _, entry := range entries {
		taken[entry.Name()] = true
	}
	for number, set := range p.ipam.Ranges {
		candidates, err := allocator.NewIPAllocator(&set, p, number).GetIter()
		if err != nil {
			return err
		}
		candidate, _ := candidates.Next()
		for candidate != nil && taken[candidate.IP.String()] {
			candidate, _ = candidates.Next()
		}
		if candidate == nil {
			return failed(unavailable, "all addresses are taken", set.String())
		}
	}
	return nil
}
