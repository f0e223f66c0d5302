//! How many sockets without a login each address has: who has no name is known only by where it is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;

/// The visitors of a gateway by address. An address without visitors takes no memory.
#[derive(Default)]
pub(crate) struct Visitors(Mutex<HashMap<IpAddr, u32>>);

impl Visitors {
    /// Counts one more at `address`; false when there are `most` already. Where a client is unknown it is not counted.
    pub(crate) fn admit(&self, address: Option<IpAddr>, most: u32) -> bool {
        let Some(place) = address.map(place) else { return true };
        let mut places = self.0.lock();
        let count = places.entry(place).or_default();
        if *count >= most {
            return false;
        }
        *count += 1;
        true
    }

    /// One that was counted has gone.
    pub(crate) fn release(&self, address: Option<IpAddr>) {
        let Some(place) = address.map(place) else { return };
        let mut places = self.0.lock();
        if let Some(count) = places.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                places.remove(&place);
            }
        }
    }
}

/// Whoever has an IPv6 address has 2^64 of them: one network counts as one address.
pub(crate) fn place(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let visitors = Visitors::default();
        let at = |text: &str| Some(text.parse::<IpAddr>().expect("an address"));
        assert!(visitors.admit(at("2001:db8:1:2::1"), 2));
        assert!(visitors.admit(at("2001:db8:1:2:ffff::1"), 2));
        assert!(!visitors.admit(at("2001:db8:1:2::2"), 2));
        assert!(visitors.admit(at("2001:db8:1:3::1"), 2));
        assert!(visitors.admit(at("10.0.0.1"), 1) && visitors.admit(at("10.0.0.2"), 1));
        assert!(!visitors.admit(at("10.0.0.1"), 1));
        assert!(visitors.admit(None, 0), "nobody knows where it is");
        visitors.release(at("10.0.0.1"));
        assert!(visitors.admit(at("10.0.0.1"), 1));
        visitors.release(at("10.0.0.2"));
        assert_eq!(visitors.0.lock().len(), 3);
    }
}
