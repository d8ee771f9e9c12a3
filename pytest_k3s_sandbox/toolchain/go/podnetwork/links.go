package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hostEnd returns the name of the node's end of a pod's pair.
func hostEnd(id, ifName string) string {
	sum := sha256.Sum256([]byte(id + ifName))
	return "veth" + hex.EncodeToString(sum[:4])
}

// isHostEnd tells whether a name is as those of hostEnd are.
func isHostEnd(name string) bool {
	digits, found := strings.CutPrefix(name, "veth")
	number, err := hex.DecodeString(digits)
	return found && err == nil && len(number) == 4
}

// remove removes an end of a pair, and with it the other end and the routes of both; there may be none.
// One message with the name does it; netlink's LinkDel would look for the number first.
func remove(name string) error {
	request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

// removeOthers removes the ends of pairs that lead to addresses of the ranges, but the valid ones.
func removeOthers(valid map[string]bool, ranges []allocator.RangeSet) error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	ours := map[int]bool{}
	for _, route := range routes {
		for _, set := range ranges {
			if route.Dst != nil && set.Contains(route.Dst.IP) {
				ours[route.LinkIndex] = true
			}
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		name := link.Attrs().Name
		if ours[link.Attrs().Index] && isHostEnd(name) && !valid[name] {
			if err := remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// pair is the connection of a pod with the node.
type pair struct {
	node, pod                 *netlink.Handle
	namespace                 netns.NsHandle
	hostName, ifName, sandbox string
}

// newPair opens both namespaces. The pod's is left at once: a socket stays in the one that it was made in.
func newPair(args *skel.CmdArgs) (*pair, error) {
	wrong := func(what string, err error) error {
		return failed(types.ErrInvalidNetNS, what, fmt.Sprintf("%s: %v", args.Netns, err))
	}
	namespace, err := netns.GetFromPath(args.Netns)
	if err != nil {
		return nil, wrong("the network namespace cannot be opened", err)
	}
	p := &pair{
		namespace: namespace, sandbox: args.Netns,
		hostName: hostEnd(args.ContainerID, args.IfName), ifName: args.IfName,
	}
	own, err := netns.Get()
	if err == nil {
		defer own.Close()
		if own.Equal(namespace) {
			err = errors.New("it is the node's")
		}
	}
	if err != nil {
		p.close()
		return nil, wrong("the network namespace is not a container's", err)
	}
	if p.node, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		p.close()
		return nil, err
	}
	if p.pod, err = netlink.NewHandleAt(namespace, unix.NETLINK_ROUTE); err != nil {
		p.close()
		return nil, wrong("the network namespace cannot be entered", err)
	}
	return p, nil
}

func (p *pair) close() {
	for _, handle := range []*netlink.Handle{p.node, p.pod} {
		if handle != nil {
			handle.Close()
		}
	}
	p.namespace.Close()
}

// loopback is lo, which is the first interface of each namespace (LOOPBACK_IFINDEX in Linux).
var loopback = &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}

// make makes the pair with its addresses and routes, and describes its ends. Each message costs time in gVisor,
// so nothing is asked that can be known. gVisor has no preferred sources, no neighbor entries and no state of
// an interface, so none of these is set or waited for.
func (p *pair) make(c *config, ips []*current.IPConfig) ([]*current.Interface, error) {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.Flags = p.hostName, c.MTU, net.FlagUp
	host := netlink.NewVeth(attributes)
	host.PeerName, host.PeerNamespace = p.ifName, netlink.NsFd(p.namespace)
	if err := p.node.LinkAdd(host); err != nil {
		return nil, fmt.Errorf("making %s and %s: %w", p.hostName, p.ifName, err)
	}
	pod, err := p.pod.LinkByName(p.ifName)
	if err != nil {
		return nil, fmt.Errorf("looking for %s in %s: %w", p.ifName, p.sandbox, err)
	}
	for _, link := range []netlink.Link{loopback, pod} {
		if err := p.pod.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("setting %s up: %w", link.Attrs().Name, err)
		}
	}
	gateways := map[string]bool{}
	for _, ip := range ips {
		gateway := single(ip.Gateway)
		if !gateways[gateway.String()] {
			gateways[gateway.String()] = true
			for _, address := range c.hostAddresses(ip.Gateway) {
				if err := p.node.AddrAdd(host, &netlink.Addr{IPNet: &address}); err != nil {
					return nil, fmt.Errorf("giving %s to %s: %w", &address, p.hostName, err)
				}
			}
			if err := addRoute(p.pod, pod, &types.Route{Dst: gateway}); err != nil {
				return nil, err
			}
		}
		if err := p.pod.AddrAdd(pod, &netlink.Addr{IPNet: &ip.Address}); err != nil {
			return nil, fmt.Errorf("giving %s to %s: %w", &ip.Address, p.ifName, err)
		}
		if err := addRoute(p.node, host, &types.Route{Dst: ip.Address}); err != nil {
			return nil, err
		}
	}
	for _, route := range c.routes() {
		if err := addRoute(p.pod, pod, route); err != nil {
			return nil, err
		}
	}
	mac := pod.Attrs().HardwareAddr.String()
	return []*current.Interface{{Name: p.hostName}, {Name: p.ifName, Mac: mac, Sandbox: p.sandbox}}, nil
}

// addRoute adds a route; one without a gateway leads to what is on the link.
func addRoute(where *netlink.Handle, link netlink.Link, given *types.Route) error {
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: &given.Dst, Gw: given.GW,
		MTU: given.MTU, AdvMSS: given.AdvMSS, Priority: given.Priority,
	}
	if given.GW == nil {
		route.Scope = netlink.SCOPE_LINK
	}
	if given.Scope != nil {
		route.Scope = netlink.Scope(*given.Scope)
	}
	if given.Table != nil {
		route.Table = *given.Table
	}
	if err := where.RouteAdd(route); err != nil {
		return fmt.Errorf("adding a route to %s over %s: %w", &given.Dst, link.Attrs().Name, err)
	}
	return nil
}

// compare returns an error if the pair is not as a result says.
func (p *pair) compare(c *config, result *current.Result) error {
	host, err := p.node.LinkByName(p.hostName)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", p.hostName, err)
	}
	pod, err := p.pod.LinkByName(p.ifName)
	if err != nil {
		return fmt.Errorf("looking for %s in %s: %w", p.ifName, p.sandbox, err)
	}
	found := false
	for _, ip := range result.IPs {
		if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(result.Interfaces) {
			continue
		}
		stated := result.Interfaces[*ip.Interface]
		if stated.Name != p.ifName || stated.Sandbox == "" {
			continue
		}
		found = true
		if mac := pod.Attrs().HardwareAddr.String(); stated.Mac != "" && stated.Mac != mac {
			return fmt.Errorf("%s has the address %s, not %s", p.ifName, mac, stated.Mac)
		}
		gateway := single(ip.Gateway)
		if err := has(p.pod, pod, []net.IPNet{ip.Address}, append(c.routes(), &types.Route{Dst: gateway})); err != nil {
			return err
		}
		if err := has(p.node, host, c.hostAddresses(ip.Gateway), []*types.Route{{Dst: ip.Address}}); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("prevResult has no address of %s", p.ifName)
	}
	return nil
}

// has returns an error if an interface lacks one of some addresses or routes.
func has(where *netlink.Handle, link netlink.Link, addresses []net.IPNet, routes []*types.Route) error {
	name := link.Attrs().Name
	listed, err := where.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		same := func(each netlink.Addr) bool { return each.IPNet.String() == address.String() }
		if !slices.ContainsFunc(listed, same) {
			return fmt.Errorf("%s does not have %s", name, &address)
		}
	}
	present, err := where.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, route := range routes {
		same := func(each netlink.Route) bool {
			return destination(&each) == route.Dst.String() && each.Gw.Equal(route.GW)
		}
		if !slices.ContainsFunc(present, same) {
			return fmt.Errorf("%s has no route to %s", name, &route.Dst)
		}
	}
	return nil
}

// destination returns that of a route as a text; netlink states none for everything.
func destination(route *netlink.Route) string {
	if route.Dst != nil {
		return route.Dst.String()
	}
	if route.Family == netlink.FAMILY_V6 {
		return "::/0"
	}
	return "0.0.0.0/0"
}
